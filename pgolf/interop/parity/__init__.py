"""Numbers of the published scripts against the same numbers computed here.

A case is one file of a reference folder: inputs, and what a published script made of them. To add a kind, write a
runner (a function of a Case that gives an Outcome) and name it in `pgolf.interop.parity.kinds`.
"""

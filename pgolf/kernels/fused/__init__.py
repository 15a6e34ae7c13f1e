"""Triton kernels for training steps: each in a module beside the plain PyTorch that it must agree with.

`kernels` names what a forward and an optimiser are handed, `choice` decides what a machine can run. The other modules
import triton, so nothing imports them but `choice`.
"""

"""The scorer that owns the targets, the ledger it writes, and bits per byte."""

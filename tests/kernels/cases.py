"""Packed rows that back ends must agree on, and inputs for them."""

import torch

from pgolf.kernels.packing import Packing

LAYOUTS = {
    "one document": [0, 150],
    "two": [0, 37, 150],
    "zero-length segments within": [0, 20, 20, 20, 90, 90, 150],
    "padded end": [0, 100, 150, 150, 150, 150],
    "many tiny": [*range(0, 150, 3), 150],
    "blocks of a longer document": [0, 64, 128, 150],
}
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def packed(boundaries, max_seqlen=None):
    return Packing.from_cu_seqlens(torch.tensor(boundaries, dtype=torch.int32), max_seqlen)


def inputs(tokens, rows=1, dtype=torch.float32, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for shape in shapes]


def with_gradients(function, tensors, packing):
    """The output and the gradients of a fixed weighted sum of it."""
    out = function(*tensors, packing)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, slope)]

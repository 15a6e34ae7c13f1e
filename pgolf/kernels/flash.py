"""Attention libraries that take documents as boundaries of one long row: FlashAttention 3 and 2, torch's varlen.

All three want bf16 or fp16, int32 boundaries on the device and the length of the longest segment.
"""

import functools
import importlib
import inspect

import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.kernels.autocast import autocast
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import Attention

HALF = (torch.bfloat16, torch.float16)


def flash_attention(name: str, module: str) -> Attention:
    """FlashAttention as the library `module` (PR 1530 and after use version 3, older records version 2).

    Raises ImportError when it is not installed.
    """
    library = importlib.import_module(module)

    def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        q, k, v = _half(name, q, k, v)
        scale = q.shape[-1] ** -0.5
        if packing is None:
            out = library.flash_attn_func(q, k, v, softmax_scale=scale, causal=True)
        else:
            row = [x.flatten(0, 1) for x in (q, k, v)]
            bounds, longest = packing.cu_seqlens, packing.max_seqlen
            out = library.flash_attn_varlen_func(
                *row, bounds, bounds, longest, longest, softmax_scale=scale, causal=True
            )
        # earlier releases of version 3 return (out, log of the softmax's denominator)
        return (out[0] if isinstance(out, tuple) else out).view_as(q)

    return attention


def torch_varlen() -> Attention:
    """`torch.nn.attention.varlen` (torch 2.10 and later). Raises ImportError in an older torch."""
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    known = inspect.signature(function).parameters
    # 2.10 says is_causal, later releases a window; key/value heads are shared by query heads from 2.12 on
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    grouped = {"enable_gqa": True} if "enable_gqa" in known else {}

    def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        q, k, v = _half("varlen", q, k, v)
        if not grouped:
            k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
        bounds, longest = _rows_as_documents(q) if packing is None else (packing.cu_seqlens, packing.max_seqlen)
        row = [x.flatten(0, 1) for x in (q, k, v)]
        return function(*row, bounds, bounds, longest, longest, **causal, **grouped).view_as(q)

    return attention


def _rows_as_documents(q: Tensor) -> tuple[Tensor, int]:
    rows, length = q.shape[:2]
    return torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device), length


def _half(name: str, *tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype that autocast asks for. Raises UserError when that is not bf16 or fp16."""
    cast = autocast(*tensors)
    if cast[0].dtype not in HALF:
        raise UserError(
            f"{name} computes in bfloat16 or float16, not in {str(cast[0].dtype).split('.')[-1]}: "
            "choose kernels=sdpa, or a precision with bfloat16 activations"
        )
    return cast


flash3 = functools.partial(flash_attention, "flash3", "flash_attn_interface")
flash2 = functools.partial(flash_attention, "flash2", "flash_attn")

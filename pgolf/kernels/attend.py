"""attend(): causal attention over dense rows or packed documents, whatever back end the machine has.

Every back end gives the same answer as the reference `sdpa`; `select` proves that it runs by running a tiny case.
A back end takes q [B, T, H, d], k and v [B, T, G, d] (query head h reads key/value head h // (H / G)) and
an optional Packing (then B is 1 and no token sees another document); scale 1 / sqrt(d); it returns [B, T, H, d].
"""

import importlib
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pgolf.errors import UserError
from pgolf.kernels.packing import Packing

Attention = Callable[[Tensor, Tensor, Tensor, Packing | None], Tensor]


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
    """Reference. A packed row is cut into right-padded rows, one per document: no T x T mask is ever built,
    and padding cannot reach a real token because attention is causal."""
    if packing is None:
        return _dense(q, k, v)
    rows = [x[0].index_select(0, packing.gather.flatten()).unflatten(0, packing.gather.shape) for x in (q, k, v)]
    return _dense(*rows).flatten(0, 1).index_select(0, packing.scatter)[None]


def _variable_length(
    function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, packing: Packing | None
) -> Tensor:
    if packing is None:
        rows, length = q.shape[:2]
        boundaries = torch.arange(0, (rows + 1) * length, length, dtype=torch.int32, device=q.device)
        longest = length
    else:
        boundaries, longest = packing.cu_seqlens, packing.max_seqlen
    flat = [x.flatten(0, 1).contiguous() for x in (q, k, v)]
    return function(*flat, boundaries, longest).view_as(q)


def _load_flash3() -> Attention:
    module = importlib.import_module("flash_attn_interface")

    def call(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        out = module.flash_attn_varlen_func(q, k, v, boundaries, boundaries, longest, longest, causal=True)
        return out[0] if isinstance(out, tuple) else out

    return partial(_variable_length, call)


def _load_flash2() -> Attention:
    module = importlib.import_module("flash_attn")

    def call(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor, longest: int) -> Tensor:
        return module.flash_attn_varlen_func(q, k, v, boundaries, boundaries, longest, longest, causal=True)

    return partial(_variable_length, call)


# Fastest first. Each entry imports its library only when it is asked for.
BACKENDS: dict[str, Callable[[], Attention]] = {"flash3": _load_flash3, "flash2": _load_flash2, "sdpa": lambda: sdpa}


def probe(name: str, device: torch.device) -> str:
    """Run a tiny packed case on `device` and compare it with the reference. Returns "" or why it cannot be used."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 24, heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    packing = Packing.from_cu_seqlens(torch.tensor([0, 7, 24], dtype=torch.int32, device=device))
    try:
        got = BACKENDS[name]()(q, k, v, packing)
    except (ImportError, OSError) as error:
        return f"not installed ({error})"
    except Exception as error:  # a library that imports and dies at its first launch is not usable either
        return f"fails on a tiny case ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    deviation = (got.float() - sdpa(q, k, v, packing).float()).abs().max().item()
    return "" if deviation <= 2e-2 else f"disagrees with the reference by {deviation:.2g}"


def select(name: str, device: torch.device) -> tuple[str, Attention]:
    """Choose a back end: `auto` takes the first of BACKENDS that works on `device`.

    Raises UserError when a back end asked for by name is unknown or cannot be used here.
    """
    if name == "auto":
        name = next(candidate for candidate in BACKENDS if not probe(candidate, device))
    elif name not in BACKENDS:
        raise UserError(f"kernels={name} is unknown: choose auto or one of {', '.join(BACKENDS)}.")
    elif reason := probe(name, device):
        raise UserError(f"kernels={name} cannot be used on {device}: {reason}. kernels=auto picks one that works.")
    return name, BACKENDS[name]()

"""attend: causal attention over dense rows or packed documents, whatever back end the machine has.

A back end takes q [B, T, H, d], k and v [B, T, G, d] (query head h reads key/value head h // (H / G)) and an optional
Packing (then B is 1 and no token sees another document); scale 1 / sqrt(d); it returns [B, T, H, d]. Each gives the
answer of `reference`: `probe` runs a tiny case forward and backward before one is used.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.kernels.documents import sdpa
from pgolf.kernels.flash import flash2, flash3, torch_varlen
from pgolf.kernels.flex import flex
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import Attention, reference

__all__ = ["BACKENDS", "Attention", "probe", "sdpa", "select"]

# Fastest first. Each entry imports its library only when it is called.
BACKENDS: dict[str, Callable[[], Attention]] = {
    "flash3": flash3,
    "flash2": flash2,
    "varlen": torch_varlen,
    "flex": flex,
    "sdpa": lambda: sdpa,
}
# What torch itself would answer, said without the seconds that it takes to import its compiler.
NOT_ON_CPU = {
    "varlen": "torch's varlen attention has no CPU kernel",
    "flex": "torch's flex attention has no backward on a CPU",
}
HEADS = (4, 2, 64)  # query heads, key/value heads, head dimension of the tiny case unless told
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of the largest value


def select(
    name: str, device: torch.device, dtype: torch.dtype | None = None, heads: tuple[int, int, int] = HEADS
) -> tuple[str, Attention]:
    """Choose a back end: `auto` takes the first of BACKENDS that works on `device` in `dtype`
    (None: `usual_dtype`) for `heads`: query heads, key/value heads and head dimension of the model.

    Raises UserError when a back end asked for by name is unknown or cannot be used here.
    """
    if name == "auto":
        name = next((each for each in BACKENDS if not probe(each, device, dtype, heads)), "")
        if not name:
            raise UserError(f"no attention back end works on {device}: {probe('sdpa', device, dtype, heads)}.")
    elif name not in BACKENDS:
        raise UserError(f"kernels={name} is unknown: choose auto or one of {', '.join(BACKENDS)}.")
    elif reason := probe(name, device, dtype, heads):
        raise UserError(f"kernels={name} cannot be used on {device}: {reason}. kernels=auto picks one that works.")
    return name, BACKENDS[name]()


def usual_dtype(device: torch.device) -> torch.dtype:
    """What attention computes in unless told: bf16 on an accelerator (autocast), fp32 on a CPU."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def probe(
    name: str, device: torch.device, dtype: torch.dtype | None = None, heads: tuple[int, int, int] = HEADS
) -> str:
    """Run tiny cases on `device`, dense and packed, forward and backward, and compare with the reference.

    Returns "" or why the back end cannot be used.
    """
    if device.type == "cpu" and name in NOT_ON_CPU:
        return NOT_ON_CPU[name]
    dtype = dtype or usual_dtype(device)
    packed = Packing.from_cu_seqlens(torch.tensor([0, 7, 7, 40, 40], dtype=torch.int32), 64).to(device)
    try:
        attention = BACKENDS[name]()
        deviation = max(
            _deviations(attention, device, dtype, heads, None) + _deviations(attention, device, dtype, heads, packed)
        )
    except (ImportError, OSError) as error:
        return f"not installed ({error})"
    except UserError as error:
        return str(error)
    except Exception as error:  # a library that imports and dies at its first launch is not usable either
        first = (str(error).splitlines() or [""])[0]
        return f"fails on a tiny case ({type(error).__name__}: {first[:160]})"
    return "" if deviation <= TOLERANCE[dtype] else f"disagrees with the reference by {deviation:.2g} of its values"


def _deviations(
    attention: Attention,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    packing: Packing | None,
) -> list[float]:
    """Largest error of the output and of each gradient, relative to the largest value of the reference; infinity
    where it is not a number."""
    generator = torch.Generator().manual_seed(0)
    queries, groups, width = heads
    shapes = [(1, 40, count, width) for count in (queries, groups, groups, queries)]
    *inputs, slope = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    got, expected = (
        _with_gradients(function, [x.detach().clone().requires_grad_() for x in inputs], packing, slope)
        for function in (attention, reference)
    )
    errors = [(a.float() - b.float()).abs().max() / b.float().abs().max() for a, b in zip(got, expected, strict=True)]
    return torch.stack(errors).nan_to_num(nan=float("inf")).tolist()


def _with_gradients(function: Attention, inputs: list[Tensor], packing: Packing | None, slope: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        out = function(inputs[0], inputs[1], inputs[2], packing)
        return [out.detach(), *torch.autograd.grad(out, inputs, slope)]

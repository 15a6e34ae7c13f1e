"""Which fused kernels a run takes: each is tried on a tiny case, forward and backward, before it is used."""

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.kernels.attend import usual_dtype
from pgolf.kernels.fused.kernels import UNFUSED, Fused

MODULES = {name: f"pgolf.kernels.fused.{name}" for name in Fused.__dataclass_fields__}
"""The module of each kernel: `fused`, `reference` that it must agree with, and an `example`."""
PAYS: tuple[str, ...] = ()
"""What fused=auto takes on a GPU: kernels that were measured to make a training step faster. None has been so far."""
WORDS = ("auto", "none", "all")
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of the largest value


def unknown(wanted: str | Sequence[str]) -> str:
    """Why `wanted` names no choice of kernels; "" where it does."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    accepted = (*WORDS, *MODULES) if isinstance(wanted, str) else tuple(MODULES)
    wrong = [name for name in names if name not in accepted]
    return f"{wrong[0]} is unknown: choose auto, none, all or some of {', '.join(MODULES)}" if wrong else ""


def select(
    wanted: str | Sequence[str], device: torch.device, dtype: torch.dtype | None = None
) -> tuple[Fused, list[str]]:
    """The kernels of `wanted` (auto, none, all, a name or several) that compute in `dtype` (None: bf16, on a CPU fp32),
    and what there is to say of the choice.

    Raises UserError when a kernel that was asked for by name, or by `all`, is unknown or cannot be used on `device`.
    """
    if reason := unknown(wanted):
        raise UserError(f"fused={_shown(wanted)}: {reason}.")
    if wanted == "auto":
        names = PAYS if device.type != "cpu" else ()
    else:
        names = tuple(MODULES) if wanted == "all" else (wanted,) if isinstance(wanted, str) else tuple(wanted)
        names = () if names == ("none",) else names
    reasons = {name: probe(name, device, dtype) for name in names}
    works = [name for name in names if not reasons[name]]
    failed = [f"{name} cannot be used on {device}: {reason}" for name, reason in reasons.items() if reason]
    if failed and wanted != "auto":
        raise UserError(f"fused={_shown(wanted)}: {'; '.join(failed)}. fused=auto takes what works.")
    chosen = Fused(**{name: module(name).fused for name in works}) if works else UNFUSED
    said = [f"fused kernel {sentence}, so the plain operations are used" for sentence in failed]
    if works or wanted != "none":
        said.append(f"fused kernels: {', '.join(works) or 'none'}")
    return chosen, said if device.type != "cpu" or works else []


def _shown(wanted: str | Sequence[str]) -> str:
    return wanted if isinstance(wanted, str) else f"[{','.join(wanted)}]"


def module(name: str) -> ModuleType:
    """The module of a kernel. ImportError without triton."""
    return importlib.import_module(MODULES[name])


def probe(name: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Run a kernel's example on `device`, forward and backward, and compare with the reference in fp64.

    Returns "" or why the kernel cannot be used.
    """
    dtype = dtype or usual_dtype(device)
    try:
        if device.type == "cpu" and not importlib.import_module("pgolf.kernels.fused.launch").interpreted():
            return "triton compiles for GPUs alone"
        deviation = _deviation(module(name), device, dtype)
    except ImportError as error:
        return f"not installed ({error})"
    except Exception as error:  # whatever a compiler may raise
        first = (str(error).splitlines() or [""])[0]
        return f"fails on a tiny case ({type(error).__name__}: {first[:160]})"
    return "" if deviation <= TOLERANCE[dtype] else f"disagrees with the reference by {deviation:.2g} of its values"


def _deviation(kernel: ModuleType, device: torch.device, dtype: torch.dtype) -> float:
    """Largest error of an output or a gradient, relative to the largest value of the reference; infinity where it is
    not a number."""
    tensors, rest = kernel.example(device, dtype, torch.Generator().manual_seed(0))
    got = _with_gradients(kernel.fused, tensors, rest)
    expected = _with_gradients(kernel.reference, [one.double() for one in tensors], rest)
    errors = [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(got, expected, strict=True)]
    return float(torch.stack(errors).nan_to_num(nan=float("inf")).max())


def _with_gradients(function: object, tensors: list[Tensor], rest: list[object]) -> list[Tensor]:
    """The outputs, and the gradients of the sum of their products with fixed slopes."""
    inputs = [one.detach().requires_grad_() for one in tensors]
    with torch.enable_grad():
        made = function(*inputs, *rest)  # type: ignore[operator]
        outputs = [made] if isinstance(made, Tensor) else list(made)
        slopes = [torch.linspace(-1.0, 2.0, one.numel(), device=one.device).view_as(one).to(one) for one in outputs]
        return [*(one.detach() for one in outputs), *torch.autograd.grad(outputs, inputs, slopes)]

"""What a scheme makes of a weight when nothing is known of its inputs: each value to its nearest level.

Quantisation-aware training rounds with the steps of the export (one rule for both), many times and wherever the weights
are; the error feedback of GPTQ, protections and corrections come at the export alone.
"""

import functools

import torch
from torch import Tensor

from pgolf.quant.encoded import decode, grid_of, grid_steps
from pgolf.quant.gptq import MIN_SCALE, safe_steps
from pgolf.quant.hessian import Calibration
from pgolf.quant.qat_rules import ToIntegers
from pgolf.quant.schemes import (
    BFloat16,
    Float8,
    Float32,
    Gptq,
    Half,
    HessianClip,
    Int8Rows,
    PercentileRows,
    Scheme,
    SensitivityGptq,
    SmallInt8,
    Ternary,
)
from pgolf.quant.schemes.int8 import row_quantiles
from pgolf.quant.schemes.sensitivity import LEVELS

NEGLIGIBLE = (Half, BFloat16, Float32)
"""Schemes that change weights by so little that training need not know."""


def steps_need_calibration(scheme: Scheme) -> bool:
    """Whether the steps follow from calibration and not from the weight alone."""
    return scheme.needs_moments or isinstance(scheme, HessianClip)


@functools.singledispatch
def rounded(
    scheme: Scheme, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round
) -> Tensor:
    """The values, float32, that `scheme` would give back for `weight` float32 of any shape, on its device.

    steps: float32 [rows] of a scheme whose steps need calibration, as they were when they were learned. to_integers:
    instead of rounding; a gradient goes through it alone, steps are constants. Schemes without a rule of their own here
    encode and decode on the CPU, as the export does; they only round (ValueError), as do those without steps.
    """
    _require_rounding(scheme, to_integers)
    given = None
    if scheme.needs_hessian:
        rows, cols = weight.shape
        given = Calibration(torch.eye(cols), 1.0, torch.ones(rows))
    return decode(scheme.quantise(weight.cpu(), given)).float().to(weight.device)


def _require_rounding(scheme: Scheme, to_integers: ToIntegers) -> None:
    """ValueError for a way to the levels that the scheme cannot follow."""
    if to_integers is not torch.round:
        raise ValueError(
            f"{scheme.label} has no steps that training could soften or fill with noise: leave its role out of "
            "quant.qat.roles, or choose quant/qat=late"
        )


def _nearest(weight: Tensor, steps: Tensor, levels: int, to_integers: ToIntegers) -> Tensor:
    steps = safe_steps(steps)[:, None]
    return to_integers(weight / steps).clamp(-levels, levels) * steps


@rounded.register
def _(scheme: Gptq, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    scales = scheme.scales(weight.detach(), Calibration(weight.new_zeros(0, 0))) if steps is None else steps
    return _nearest(weight, scales.half(), scheme.levels, to_integers)


@rounded.register
def _(
    scheme: HessianClip, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round
) -> Tensor:
    if steps is None:
        steps = scheme.scales(weight.detach(), Calibration(torch.eye(weight.shape[1], device=weight.device)))
    return _nearest(weight, steps.half(), scheme.levels, to_integers)


@rounded.register
def _(
    scheme: SensitivityGptq, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round
) -> Tensor:
    # A trellis rounds finer than to multiples of its step, by 12 % of the error; its paths are too slow to follow here.
    if steps is None:
        raise ValueError(f"the steps of {scheme.label} follow from calibration")
    steps = steps[:1] if scheme.granularity == "tensor" else steps
    on_grid = grid_steps(torch.round(grid_of(len(steps)) * steps.log2()))
    return _nearest(weight, on_grid.expand(len(weight)), LEVELS, to_integers)


@rounded.register
def _(
    scheme: PercentileRows, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round
) -> Tensor:
    magnitudes, tried = weight.detach().abs(), []
    for share in scheme.percentiles:
        clip = magnitudes.amax(dim=1) if share == 1 else row_quantiles(magnitudes, share)
        steps = (clip.clamp_min(scheme.least_clip) / scheme.levels).half()
        error = (_nearest(weight.detach(), steps, scheme.levels, torch.round) - weight.detach()).square().mean()
        tried.append((error, steps))
    least = torch.stack([error for error, _ in tried]).argmin(dim=0, keepdim=True)
    best = torch.stack([steps for _, steps in tried]).index_select(0, least)[0]  # without asking a GPU which it is
    return _nearest(weight, best, scheme.levels, to_integers)


@rounded.register
def _(scheme: Int8Rows, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    return _nearest(weight, (weight.detach().abs().amax(dim=1).clamp_min(MIN_SCALE) / 127).half(), 127, to_integers)


@rounded.register
def _(scheme: SmallInt8, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    rows = weight if weight.ndim == 2 else weight.reshape(1, -1)
    steps = (rows.detach().abs().amax(dim=1).clamp_min(MIN_SCALE) / 127).half()
    return _nearest(rows, steps, 127, to_integers).reshape(weight.shape)


@rounded.register
def _(scheme: Float8, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    _require_rounding(scheme, to_integers)
    return weight.to(torch.float8_e4m3fn).float()


@rounded.register
def _(scheme: Ternary, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    _require_rounding(scheme, to_integers)
    symbols, scales = scheme.levels_of(weight)
    values = symbols.float() * scales.float()[:, None]
    return values.reshape(-1)[: weight.numel()].reshape(weight.shape)


@rounded.register
def _(scheme: Half, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    return weight.half().float()


@rounded.register
def _(scheme: BFloat16, weight: Tensor, steps: Tensor | None = None, to_integers: ToIntegers = torch.round) -> Tensor:
    return weight.bfloat16().float()

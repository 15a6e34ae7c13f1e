"""GPTQ with a clip set by the row's standard deviation ("SDClip"), in float32.

GPTQ: Frantar et al., 2022. The clip rule, the damping and the column order are those of the
Parameter Golf records from PR 1394 on. The columns of the weight are rounded one after the other,
the most active input first; the error of each is compensated in the columns that are still to come.
"""

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of the Hessian."""

MIN_SCALE = 1e-10
"""Least row scale before the rounding to float16 (published; float16 makes it zero)."""


def row_scales(weight: Tensor, *, clip_sigmas: float, bits: int) -> Tensor:
    """The step of every row: `clip_sigmas` standard deviations are spread over the positive levels.

    `weight` float32 [rows, cols]; returns float16 [rows]. Raises ValueError when a step exceeds
    float16.
    """
    levels = 2 ** (bits - 1) - 1
    scales = (clip_sigmas * weight.std(dim=1) / levels).clamp_min(MIN_SCALE).half()
    if not torch.isfinite(scales).all():
        raise ValueError("a row is too large: its step does not fit in float16.")
    return scales


def safe_steps(scales: Tensor) -> Tensor:
    """float16 scales as float32 divisors; a zero step (a row of zeros) becomes one: all zeros."""
    steps = scales.float()
    return torch.where(steps == 0, torch.ones_like(steps), steps)


def gptq_quantise(
    weight: Tensor, hessian: Tensor, *, clip_sigmas: float, bits: int, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Quantise `weight` [rows, cols] so that tr(E H E^T) of the error E stays small.

    Args:
        weight: any float dtype [rows, cols], cols >= 2.
        hessian: [cols, cols], symmetric, X^T X of the inputs up to a factor.
        clip_sigmas: standard deviations of a row that reach the outermost level.
        bits: 2 to 8; symbols lie in +-(2^(bits-1) - 1).
        block_size: columns whose corrections to later columns are applied together; changes speed
            only.

    Returns:
        symbols int8 [rows, cols] in the original column order, scales float16 [rows];
        symbols * scales is the quantised weight.

    Raises ValueError for wrong shapes and for values that are not finite.
    """
    _check(weight, hessian)
    weight = weight.detach().float()
    scales = row_scales(weight, clip_sigmas=clip_sigmas, bits=bits)
    order, dead, upper = _prepare(hessian.detach().to(weight.device))
    # One weight column is one contiguous row of `columns` [cols, rows].
    columns = weight[:, order].t().contiguous()
    columns[dead[order]] = 0
    symbols = torch.empty(columns.shape, dtype=torch.int8, device=weight.device)
    steps, levels = safe_steps(scales), 2 ** (bits - 1) - 1
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        block = slice(start, stop)
        errors = _quantise_block(columns[block], upper[block, block], steps, levels, symbols[block])
        columns[stop:] -= upper[block, stop:].t() @ errors
    return symbols[torch.argsort(order)].t().contiguous(), scales


def _check(weight: Tensor, hessian: Tensor) -> None:
    if weight.ndim != 2 or weight.shape[1] < 2:
        raise ValueError(f"GPTQ needs a matrix of two or more columns, not {tuple(weight.shape)}.")
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"the Hessian has shape {tuple(hessian.shape)}, but a weight of "
            f"{tuple(weight.shape)} needs {(weight.shape[1], weight.shape[1])}."
        )
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds values that are not finite.")
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds values that are not finite.")


def _prepare(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Column order int64 [cols], dead inputs bool [cols], upper factor of the inverse [cols, cols].

    The factor is in the permuted order. An input that was always zero is dead: its diagonal becomes
    one.
    """
    hessian = hessian.float().clone()
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += DAMPING * diagonal.mean()
    order = torch.argsort(diagonal, descending=True, stable=True)
    permuted = hessian[order][:, order]
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(permuted))
        upper = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError as error:
        raise ValueError(f"the Hessian is not positive definite ({error}).") from error
    return order, dead, upper


def _quantise_block(columns: Tensor, upper: Tensor, steps: Tensor, levels: int, symbols: Tensor) -> Tensor:
    """Round the columns of one block in order, correcting those to come; returns errors [block,
    rows].

    `columns` float32 [block, rows] is used up; `symbols` int8 [block, rows] receives the result.
    """
    errors = torch.empty_like(columns)
    pivots = upper.diagonal().tolist()
    for index, pivot in enumerate(pivots):
        column = columns[index]
        rounded = torch.round(column / steps).clamp_(-levels, levels)
        symbols[index] = rounded
        error = column.sub(rounded.mul_(steps)).div_(pivot)
        errors[index] = error
        columns[index + 1 :] -= torch.outer(upper[index, index + 1 :], error)
    return errors

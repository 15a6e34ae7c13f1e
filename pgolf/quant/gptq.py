"""GPTQ: columns of a weight are rounded one after the other, the error of each compensated in those still to come.

GPTQ: Frantar et al., 2022. The damping and the column order (most active input first) are those of the Parameter Golf
records from PR 1394 on, as is the clip set by the row's standard deviation ("SDClip"). All in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of the Hessian."""

MIN_SCALE = 1e-10
"""Least row scale before the rounding to float16 (published; float16 makes it zero)."""

INNER = 16
"""Columns that are corrected one by one; further columns of the block get the corrections of as many at once."""

Rounder = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Rounds one column [rows] given its index: (symbols [rows] of any dtype, values float32 [rows])."""


def float16_scales(scales: Tensor) -> Tensor:
    """Row scales as float16. Raises ValueError when one exceeds its range."""
    rounded = scales.half()
    if not torch.isfinite(rounded).all():
        raise ValueError("a row is too large: its step does not fit in float16.")
    return rounded


def row_scales(weight: Tensor, *, clip_sigmas: float, bits: int) -> Tensor:
    """The step of every row: `clip_sigmas` standard deviations are spread over the positive levels.

    `weight` float32 [rows, cols]; returns float16 [rows]. Raises ValueError when a step exceeds float16.
    """
    levels = 2 ** (bits - 1) - 1
    return float16_scales((clip_sigmas * weight.std(dim=1) / levels).clamp_min(MIN_SCALE))


def safe_steps(scales: Tensor) -> Tensor:
    """float16 scales as float32 divisors; a zero step (a row of zeros) becomes one: all zeros."""
    steps = scales.float()
    return torch.where(steps == 0, torch.ones_like(steps), steps)


def to_nearest(scales: Tensor, levels: int) -> Rounder:
    """A rounder to the nearest of the multiples -levels ... levels of each row's scale (half to even)."""
    steps = safe_steps(scales)

    def rounder(column: Tensor, index: int) -> tuple[Tensor, Tensor]:
        symbols = torch.round(column / steps).clamp_(-levels, levels)
        return symbols, symbols * steps

    return rounder


@dataclass(frozen=True)
class Factor:
    """What GPTQ needs of a Hessian.

    `order` int64 [cols]: columns by falling activity. `dead` bool [cols]: inputs that were always zero. `upper`
    [cols, cols]: upper Cholesky factor of the inverse of the damped Hessian, in the permuted order.
    """

    order: Tensor
    dead: Tensor
    upper: Tensor


def factorise(hessian: Tensor) -> Factor:
    """Damp, order and factorise a Hessian [cols, cols]; ValueError when it is not finite or not positive definite."""
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds values that are not finite.")
    hessian = hessian.detach().float().clone()
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
    return Factor(order, dead, upper)


def quantise_columns(weight: Tensor, factor: Factor, rounder: Rounder, block_size: int = 128) -> Tensor:
    """Round `weight` [rows, cols] column by column so that tr(E H E^T) of the error E stays small.

    Args:
        weight: any float dtype [rows, cols], cols >= 2.
        factor: of the Hessian of the inputs.
        rounder: rounds one column; it is called once a column, in the factor's order.
        block_size: columns whose corrections to later columns are applied together; changes speed only.

    Returns symbols int8 [rows, cols] in the original column order.
    """
    order, upper = factor.order, factor.upper
    # One weight column is one contiguous row of `columns` [cols, rows].
    columns = weight.detach().float()[:, order].t().contiguous()
    columns[factor.dead[order]] = 0
    symbols = torch.empty(columns.shape, dtype=torch.int8, device=columns.device)
    errors = torch.empty((min(block_size, len(columns)), columns.shape[1]), device=columns.device)
    indices, pivots = order.tolist(), upper.diagonal().tolist()
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        for inner in range(start, stop, INNER):
            end = min(inner + INNER, stop)
            for at in range(inner, end):
                symbols[at], values = rounder(columns[at], indices[at])
                error = torch.div(columns[at] - values, pivots[at], out=errors[at - start])
                columns[at + 1 : end].addr_(upper[at, at + 1 : end], error, alpha=-1)
            _correct(columns, upper, errors[inner - start : end - start], inner, end, stop)
        _correct(columns, upper, errors[: stop - start], start, stop, len(columns))
    return symbols[torch.argsort(order)].t().contiguous()


def _correct(columns: Tensor, upper: Tensor, errors: Tensor, start: int, end: int, stop: int) -> None:
    """Apply the errors of columns start ... end to the columns end ... stop, in place."""
    if end < stop:
        columns[end:stop].addmm_(upper[start:end, end:stop].t(), errors, alpha=-1)


def check_problem(weight: Tensor, hessian: Tensor) -> None:
    """Raise ValueError when the two do not fit, or the weight holds values that are not finite."""
    if weight.ndim != 2 or weight.shape[1] < 2:
        raise ValueError(f"GPTQ needs a matrix of two or more columns, not {tuple(weight.shape)}.")
    if hessian.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(
            f"the Hessian has shape {tuple(hessian.shape)}, but a weight of "
            f"{tuple(weight.shape)} needs {(weight.shape[1], weight.shape[1])}."
        )
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds values that are not finite.")


def gptq_quantise(
    weight: Tensor, hessian: Tensor, *, clip_sigmas: float, bits: int, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """GPTQ with SDClip: symbols int8 [rows, cols] within +-(2^(bits-1) - 1), and scales float16 [rows].

    `weight` [rows, cols] of any float dtype, cols >= 2; `hessian` [cols, cols], symmetric, X^T X of the inputs up to a
    factor; `clip_sigmas` standard deviations of a row reach the outermost level; symbols * scales is the quantised
    weight. Raises ValueError for wrong shapes and for values that are not finite.
    """
    check_problem(weight, hessian)
    scales = row_scales(weight.detach().float(), clip_sigmas=clip_sigmas, bits=bits)
    factor = factorise(hessian.to(weight.device))
    rounder = to_nearest(scales, 2 ** (bits - 1) - 1)
    return quantise_columns(weight, factor, rounder, block_size), scales

"""Filling a budget: the one factor on all steps that makes an artifact as large as it may be."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.errors import UserError

TOLERANCE = 0.001
"""Share of the target that may stay unused."""
TRIES = 12
OCTAVES = 40.0
"""The first guess looks for the factor between 2^-OCTAVES and 2^OCTAVES."""
SAMPLE = 1 << 14
"""Weights of a tensor that the guess looks at, about."""


def rounding_bits(weight: Tensor, steps: Tensor, factor: float) -> float:
    """Entropy in bits of a matrix [rows, cols] rounded to multiples of factor * steps [rows]; from a sample of rows."""
    every = max(1, weight.numel() // SAMPLE)
    symbols = torch.round(weight[::every].double() / (steps[::every, None].double() * factor))
    counts = symbols.unique(return_counts=True)[1].double()
    chances = counts / counts.sum()
    return float(-(chances * chances.log2()).sum()) * weight.numel()


def first_guess(problems: Iterable[tuple[Tensor, Tensor]], target_bits: float) -> float:
    """The factor at which the entropy of all (weight, steps) is the target; by bisection."""
    problems, low, high = list(problems), -OCTAVES, OCTAVES
    for _ in range(24):
        middle = (low + high) / 2
        bits = sum(rounding_bits(weight, steps, 2.0**middle) for weight, steps in problems)
        low, high = (middle, high) if bits > target_bits else (low, middle)
    return 2.0 ** ((low + high) / 2)


def fill(size_of: Callable[[float], int], guess: float, target_bytes: int, weights: int, console: Console) -> float:
    """The factor whose artifact is at most `target_bytes` long and at most TOLERANCE shorter.

    Args:
        size_of: factor -> bytes of the artifact.
        guess: where to begin.
        target_bytes: bytes to fill.
        weights: how many weights the factor is about; doubling their steps saves a bit of each.
        console: where the tries are told.

    Where no factor fills the target - the finest steps are reached - the largest artifact that was found is taken, and
    that is said. Raises UserError when none fits.
    """
    best: tuple[int, float] | None = None
    least = math.inf
    low, high = -math.inf, math.inf  # binary logarithms of factors known to be too fine, and fine enough
    at = math.log2(guess)
    for _ in range(TRIES):
        size = size_of(2.0**at)
        console.say(f"steps x {2.0**at:.4g}: {size:,} of {target_bytes:,} bytes")
        least = min(least, size)
        if size <= target_bytes:
            high = at
            if best is not None and size <= best[0] and at <= best[1] - 1:
                break  # steps of half the width or less changed nothing: they are the finest that there are
            if best is None or size > best[0]:
                best = (size, at)
            if size >= (1 - TOLERANCE) * target_bytes:
                return 2.0**at
        else:
            low = at
        aim = (1 - TOLERANCE / 2) * target_bytes
        at += max(-4.0, min(4.0, 8 * (size - aim) / weights))
        if not low < at < high:
            at = (low + high) / 2
    if best is None:
        raise UserError(
            f"no steps make the artifact fit in quant.target_bytes={target_bytes:,}: what is stored without them, or "
            f"the model itself, is too large (the smallest that was made has {least:,} bytes)."
        )
    console.say(f"quant.target_bytes={target_bytes:,} is not filled: {best[0]:,} bytes is the nearest from below")
    return 2.0 ** best[1]

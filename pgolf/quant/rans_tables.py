"""Frequencies for `pgolf.quant.rans`: a class for each spread of the values, a Gaussian table for each class.

All of it is integer arithmetic, so that encoder and decoder agree on every machine.
"""

from collections.abc import Sequence
from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

PRECISION = 14
"""Frequencies of a table add up to 2^PRECISION."""
UNIT = 1024
"""Mean magnitudes are counted in this fraction of a symbol."""
FIRST = 5
"""Binary logarithm of the least mean magnitude, in units, above class 0."""
CLASSES = 1 + 8 * (17 - FIRST)
SHIFT_BITS = 12
"""Row shifts scale magnitudes by fixed-point powers of 2^(1/8) with so many fractional bits."""
MAX_SHIFT = 64
"""Row shifts lie between -MAX_SHIFT and MAX_SHIFT."""


def eighths(exponent: int) -> int:
    """floor(2^(exponent / 8)), exactly."""
    return isqrt(isqrt(isqrt(1 << exponent)))


@cache
def class_of_mean() -> Ints:
    """The class of every mean magnitude 0 ... 128 * UNIT (in units)."""
    thresholds = [eighths(8 * FIRST + step) for step in range(CLASSES - 1)]
    return np.searchsorted(np.array(thresholds), np.arange(128 * UNIT + 1), side="right").astype(np.int64)


@cache
def inverse_scales() -> Ints:
    """2^(-shift / 8) in fixed point, for all row shifts."""
    return np.array([eighths(8 * SHIFT_BITS - shift) for shift in range(-MAX_SHIFT, MAX_SHIFT + 1)], np.int64)


def normalise(weights: Sequence[int]) -> list[int]:
    """Frequencies of at least 1 that add up to 2^PRECISION, in proportion to non-negative weights."""
    total = max(1, sum(weights))
    frequencies = [max(1, (weight << PRECISION) // total) for weight in weights]
    largest = max(range(len(weights)), key=frequencies.__getitem__)
    frequencies[largest] += (1 << PRECISION) - sum(frequencies)
    if frequencies[largest] < 1:
        raise ValueError("a table has more symbols than frequencies")
    return frequencies


def gaussian_weights(spread: int, low: int, high: int) -> list[int]:
    """Weights of the symbols low ... high when they are rounded Gaussian values of this class."""
    weights = _magnitude_weights(spread)
    return [weights[abs(symbol)] for symbol in range(low, high + 1)]


@cache
def _magnitude_weights(spread: int) -> tuple[int, ...]:
    """Weights of the magnitudes 0 ... 256: the Gaussian density at nine points of each symbol's interval, summed."""
    bits, points = 96, 8
    # exp(-x^2 / (2 s^2)) at x = i / 8 is r^(i^2), with s^2 = mean^2 pi / 2, so r = exp(-1 / (64 pi mean^2))
    square = eighths(8 * 40 + 2 * spread - 1 + 16 * (FIRST - 10))  # of the mean magnitude, times 2^40
    ratio = _exp_negative(113 << 40, 64 * 355 * square, bits)
    density, step = [1 << bits], ratio
    while len(density) <= points * 257:
        density.append(density[-1] * step >> bits)
        step = (step * ratio >> bits) * ratio >> bits

    def weight(magnitude: int) -> int:
        near = [density[abs(points * magnitude + offset)] for offset in range(-points // 2, points // 2 + 1)]
        return (2 * sum(near) - near[0] - near[-1]) >> (bits - 40)

    return tuple(weight(magnitude) for magnitude in range(257))


def _exp_negative(numerator: int, denominator: int, bits: int) -> int:
    """exp(-numerator / denominator) in fixed point, by its series."""
    total = term = 1 << bits
    order = 0
    while term:
        order += 1
        term = term * numerator // (denominator * order)
        total += term if order % 2 == 0 else -term
    return max(total, 0)


def weight_of_code(code: int) -> int:
    """A stored weight: four bits of mantissa above an exponent; code 0 is none."""
    return (16 + (code - 1) % 16) << ((code - 1) // 16) if code else 0

"""How the encoder of `pgolf.quant.rans` chooses the form of each matrix: the one with the least entropy."""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from pgolf.quant.rans import (
    EVERY_ROW,
    PERIOD,
    TRELLIS,
    Spreads,
    centre_of,
    classes_of,
    is_exchanged,
    magnitude_units,
    moved,
)
from pgolf.quant.rans_side import Form
from pgolf.quant.rans_tables import CLASSES, MAX_SHIFT, PRECISION, UNIT, Ints, gaussian_weights, normalise

SHIFT_BITS = 3
"""What a row shift costs after zlib, about."""
CODE_BITS = 6
"""What one code of a stored table costs after zlib, about; a table is stored when it saves more."""
FORM_BITS = 64
"""What another form must save before it is taken."""
MAX_ROWS = (1 << 16) - 1
"""Rows that may be looked through for repetitions: their numbers are stored in 16 bits."""
DRIFTS = (5, 4, 7)
"""Drifts that are tried, until one does not make the values smaller."""
MEMORIES, MEMORY_ROWS = (4, 6, 8), 1024
"""Memories that are tried, and the rows that a matrix must have for that."""


@dataclass(frozen=True)
class Matrix:
    """One matrix to encode: symbols int8 [rows, cols], and the rows of a trellis segment where it comes from one."""

    symbols: npt.NDArray[np.int8]
    segment: int = 0


@dataclass(frozen=True)
class Prepared:
    """A matrix as it is coded: its form; the value, the class and the codebook of every element, int64 [rows, cols];
    and about how many bits that takes."""

    form: Form
    values: Ints
    classes: Ints
    codebooks: npt.NDArray[np.uint8] | None
    bits: float


def prepare(matrix: Matrix) -> Prepared:
    """The matrix in the best form that is found by changing one thing after the other."""
    symbols, segment, repeats = matrix.symbols.astype(np.int64), matrix.segment, None
    if is_exchanged(matrix.symbols.shape):
        symbols, segment = np.ascontiguousarray(symbols.T), 0
    if not segment:
        repeats = _repeats(symbols)
        symbols = symbols if repeats is None else symbols[repeats == 0]
    codebooks = codebooks_of(symbols, segment) if segment else None

    def drifting(drift: int, values: Ints) -> Prepared:
        mean = int(np.clip(np.abs(values).sum() * UNIT // max(1, values.size), 1, 128 * UNIT))
        return _under(Form(mean, _prior(values), segment, drift, repeats=repeats), values, codebooks)

    best = drifting(0, symbols)
    for drift in DRIFTS:
        values = without_drift(symbols, drift)
        if not symbols.size or values.var() >= symbols.var():
            break
        best = _better(best, drifting(drift, values))
    form, values = best.form, best.values
    others = [replace(form, shifts=_row_shifts(values, form.mean))]
    if len(values) >= MEMORY_ROWS:
        others += [replace(form, memory=memory) for memory in MEMORIES]
    for one in others:
        best = _better(best, _under(one, values, codebooks))
    return best


def _better(best: Prepared, other: Prepared) -> Prepared:
    return other if other.bits < best.bits - FORM_BITS else best


def _under(form: Form, values: Ints, codebooks: npt.NDArray[np.uint8] | None) -> Prepared:
    """The matrix in this form."""
    classes = classes_under(form, values)
    shifts = 0 if form.shifts is None else SHIFT_BITS * len(form.shifts)
    return Prepared(form, values, classes, codebooks, _cost(values, classes) + shifts)


def _repeats(symbols: Ints) -> Ints | None:
    """For every row 0, or 1 + the number of the coded row that it equals; None where all rows differ."""
    if not 2 <= len(symbols) <= MAX_ROWS:
        return None
    numbers: dict[bytes, int] = {}
    repeats = np.zeros(len(symbols), np.int64)
    for row, one in enumerate(symbols.astype(np.int8)):
        key = one.tobytes()
        if key in numbers:
            repeats[row] = 1 + numbers[key]
        else:
            numbers[key] = len(numbers)
    return repeats if repeats.any() else None


def without_drift(symbols: Ints, drift: int) -> Ints:
    """Differences from the moving means of the columns."""
    moving, values = np.zeros(symbols.shape[1], np.int64), np.empty_like(symbols)
    for row, one in enumerate(symbols):
        values[row] = one - centre_of(moving)
        moving = moved(moving, one, drift)
    return values


def _prior(values: Ints) -> int:
    """Rows of the common mean that serve the estimates of the columns best: the variance of a magnitude about its
    column's mean over the variance of those means, Gaussian values taken for granted."""
    if not values.size:
        return 1
    noise = math.pi / 2 - 1  # squared coefficient of variation of a Gaussian's magnitude
    means = np.abs(values).mean(axis=0)
    variance = float(means.var() / max(float(means.mean()) ** 2, 1e-12)) - noise / len(values)
    return int(np.clip(round(noise / max(variance, 1e-4)), 1, 255))


def _row_shifts(values: Ints, mean: int) -> Ints:
    """How far each row's mean magnitude lies from the matrix's, in eighths of an octave; int64 [rows]."""
    means = np.abs(values).mean(axis=1) * UNIT
    return np.clip(np.round(8 * np.log2(np.maximum(means, 1) / mean)), -MAX_SHIFT, MAX_SHIFT).astype(np.int64)


def classes_under(form: Form, values: Ints) -> Ints:
    """The class of every element, as the decoder will find it; int64 [rows, cols]."""
    shift = 0 if form.shifts is None else form.shifts[:, None]
    magnitudes = magnitude_units(values, shift)
    if form.memory:
        spreads, classes = Spreads(values.shape[1], form), np.empty_like(values)
        for row, one in enumerate(magnitudes):
            classes[row] = spreads.classes(row)
            spreads.take(one)
    else:  # the same without a loop
        sums = np.cumsum(magnitudes, axis=0)
        sums = np.concatenate([np.zeros((1, values.shape[1]), np.int64), sums[:-1]]) + form.prior * form.mean
        rows = np.arange(len(values))
        seen = np.where(rows < EVERY_ROW, rows, rows - rows % PERIOD)
        classes = classes_of(sums[seen], (seen + form.prior)[:, None])
    return np.clip(classes + shift, 0, CLASSES - 1)


def codebooks_of(symbols: Ints, segment: int) -> npt.NDArray[np.uint8]:
    """The codebook of every element of a trellis; uint8 [rows, cols]."""
    states = np.zeros(symbols.shape[1], np.uint8)
    codebooks = np.empty(symbols.shape, np.uint8)
    for row, values in enumerate(symbols):
        if row % segment == 0:
            states[:] = 0
        codebooks[row] = states & 1
        states = TRELLIS[states, values & 1]
    return codebooks


def histograms(values: Ints, contexts: Ints, num_contexts: int, low: int, count: int) -> Ints:
    """How often each value low ... low + count - 1 comes in each context; int64 [contexts, count]."""
    entries = (contexts * count + values - low).reshape(-1)
    return np.bincount(entries, minlength=num_contexts * count).reshape(num_contexts, count)


def _cost(values: Ints, classes: Ints) -> float:
    """About how many bits the values take: each class under its Gaussian table, or with a table of its own."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    counts = histograms(values, classes, CLASSES, low, high - low + 1)
    gaussian = (counts * _gaussian_costs(low, high)).sum(axis=1)
    chances = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy = -(counts * np.log2(chances, where=counts > 0, out=np.zeros_like(chances))).sum(axis=1)
    return float(np.minimum(gaussian, entropy + CODE_BITS * counts.shape[1]).sum())


@cache
def _gaussian_costs(low: int, high: int) -> npt.NDArray[np.float64]:
    """Bits of the values low ... high under the Gaussian table of every class; [classes, values]."""
    tables = [normalise(gaussian_weights(spread, low, high)) for spread in range(CLASSES)]
    return PRECISION - np.log2(np.array(tables, float))

"""The encoder of `pgolf.quant.rans`: contexts of whole matrices at once, tables where they pay, then rANS backwards."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pgolf.quant.rans import (
    CLASSES,
    EVERY_ROW,
    LOW,
    MAX_SHIFT,
    PERIOD,
    PRECISION,
    TRELLIS,
    UNIT,
    Ints,
    Side,
    centre_of,
    classes_of,
    gaussian_weights,
    is_exchanged,
    magnitude_units,
    moved,
    normalise,
    weight_of_code,
)

MAX_LANES = 512
SYMBOLS_PER_LANE = 1 << 13
"""A lane costs two bytes, which so many symbols should bear."""
LEAST_SYMBOLS = 4096
"""Classes at both ends with fewer symbols than this are merged into their neighbours."""
SHIFT_BITS = 3
"""What a row shift costs after zlib, about."""
CODE_BITS = 6
"""What one code of a stored table costs after zlib, about; a table is stored when it saves more."""


@dataclass(frozen=True)
class Matrix:
    """One matrix to encode: symbols int8 [rows, cols], and the rows of a trellis segment where it comes from one."""

    symbols: npt.NDArray[np.int8]
    segment: int = 0


@dataclass(frozen=True)
class _Prepared:
    """A matrix as it is coded (differences, where it drifts), with the class and the codebook of every element."""

    symbols: Ints
    classes: Ints
    codebooks: npt.NDArray[np.uint8] | None
    mean: int
    prior: int
    segment: int
    shifts: Ints | None
    drift: bool


def encode(streams: Sequence[Sequence[Matrix]]) -> list[bytes]:
    """The payload of every stream of matrices; `pgolf.quant.rans.decode` reads them, all in order."""
    if not streams:
        return []
    prepared = [[_prepare(matrix) for matrix in stream] for stream in streams]
    total = sum(one.symbols.size for stream in prepared for one in stream)
    widest = max((one.symbols.shape[1] for stream in prepared for one in stream), default=1)
    lanes = max(1, min(MAX_LANES, widest, total // SYMBOLS_PER_LANE))
    states = np.full(lanes, LOW, np.int64)
    payloads = []
    for stream in reversed(prepared):  # the decoder begins where the encoder ends
        side = _side(stream)
        packed = side.pack()
        words = _encode_stream(stream, side, states)
        payloads.append(struct.pack("<I", len(packed)) + packed + words)
    payloads.reverse()
    payloads[0] = struct.pack("<H", lanes) + states.astype("<u4").tobytes() + payloads[0]
    return payloads


def _prepare(matrix: Matrix) -> _Prepared:
    """The matrix in the form that has the least entropy: with or without drift, with or without row shifts."""
    symbols = matrix.symbols.astype(np.int64)
    segment = matrix.segment
    if is_exchanged(matrix.symbols.shape):
        symbols, segment = np.ascontiguousarray(symbols.T), 0
    codebooks = _codebooks(symbols, segment) if segment else None
    best, least = None, math.inf
    for drift in (False, True):
        values = _without_drift(symbols) if drift else symbols
        if drift and values.size and values.var() >= symbols.var():
            break
        mean = int(np.clip(np.abs(values).sum() * UNIT // max(1, values.size), 1, 128 * UNIT))
        prior = _prior(values)
        for shifts in (None, _row_shifts(values, mean)):
            classes = _classes(values, mean, prior, shifts)
            size = _entropy(values, classes) + (0 if shifts is None else SHIFT_BITS * len(shifts) + 64)
            if best is None or size < least - 64:
                best, least = _Prepared(values, classes, codebooks, mean, prior, segment, shifts, drift), size
    assert best is not None  # the first form is always taken
    return best


def _without_drift(symbols: Ints) -> Ints:
    """Differences from the moving means of the columns."""
    moving, values = np.zeros(symbols.shape[1], np.int64), np.empty_like(symbols)
    for row, one in enumerate(symbols):
        values[row] = one - centre_of(moving)
        moving = moved(moving, one)
    return values


def _prior(symbols: Ints) -> int:
    """Rows of the common mean that serve the estimates of the columns best: the variance of a magnitude about its
    column's mean over the variance of those means, Gaussian values taken for granted."""
    if not symbols.size:
        return 1
    noise = math.pi / 2 - 1  # squared coefficient of variation of a Gaussian's magnitude
    means = np.abs(symbols).mean(axis=0)
    variance = float(means.var() / max(float(means.mean()) ** 2, 1e-12)) - noise / len(symbols)
    return int(np.clip(round(noise / max(variance, 1e-4)), 1, 255))


def _row_shifts(symbols: Ints, mean: int) -> Ints:
    """How far each row's mean magnitude lies from the matrix's, in eighths of an octave; int64 [rows]."""
    means = np.abs(symbols).mean(axis=1) * UNIT
    return np.clip(np.round(8 * np.log2(np.maximum(means, 1) / mean)), -MAX_SHIFT, MAX_SHIFT).astype(np.int64)


def _classes(symbols: Ints, mean: int, prior: int, shifts: Ints | None) -> Ints:
    """The class of every element, as the decoder will find it; int64 [rows, cols]."""
    shift = 0 if shifts is None else shifts[:, None]
    sums = np.cumsum(magnitude_units(symbols, shift), axis=0)
    sums = np.concatenate([np.zeros((1, symbols.shape[1]), np.int64), sums[:-1]]) + prior * mean
    rows = np.arange(len(symbols))
    seen = np.where(rows < EVERY_ROW, rows, rows - rows % PERIOD)
    return np.clip(classes_of(sums[seen], (seen + prior)[:, None]) + shift, 0, CLASSES - 1)


def _codebooks(symbols: Ints, segment: int) -> npt.NDArray[np.uint8]:
    """The codebook of every element of a trellis; uint8 [rows, cols]."""
    states = np.zeros(symbols.shape[1], np.uint8)
    codebooks = np.empty(symbols.shape, np.uint8)
    for row, values in enumerate(symbols):
        if row % segment == 0:
            states[:] = 0
        codebooks[row] = states & 1
        states = TRELLIS[states, values & 1]
    return codebooks


def _histograms(symbols: Ints, contexts: Ints, num_contexts: int, low: int, count: int) -> Ints:
    """How often each symbol low ... low + count - 1 comes in each context; int64 [contexts, count]."""
    entries = (contexts * count + symbols - low).reshape(-1)
    return np.bincount(entries, minlength=num_contexts * count).reshape(num_contexts, count)


def _entropy(symbols: Ints, contexts: Ints) -> float:
    """Empirical entropy of the symbols given their contexts, in bits."""
    low = int(symbols.min(initial=0))
    histograms = _histograms(symbols, contexts, CLASSES, low, int(symbols.max(initial=0)) - low + 1).astype(float)
    totals = histograms.sum(axis=1, keepdims=True)
    used = histograms > 0
    return float(-(histograms * np.log2(np.divide(histograms, totals, where=used, out=np.ones_like(histograms)))).sum())


def _side(stream: Sequence[_Prepared]) -> Side:
    """Ranges, and the tables that are worth storing."""
    low = min((int(one.symbols.min()) for one in stream if one.symbols.size), default=0)
    high = max((int(one.symbols.max()) for one in stream if one.symbols.size), default=0)
    parity = any(one.segment for one in stream)
    sizes = sum((np.bincount(one.classes.reshape(-1), minlength=CLASSES) for one in stream), np.zeros(CLASSES, int))
    large = np.flatnonzero(sizes >= min(LEAST_SYMBOLS, sizes.max()))
    first, last, count = int(large[0]), int(large[-1]), high - low + 1
    num_contexts = (last - first + 1) << parity
    histograms = np.zeros((num_contexts, count), np.int64)
    for one in stream:
        histograms += _histograms(one.symbols, _contexts(one, first, last, parity), num_contexts, low, count)
    codes: dict[int, bytes] = {}
    for context, histogram in enumerate(histograms):
        gaussian = normalise(gaussian_weights(first + (context >> parity), low, high))
        stored = _codes(histogram)
        better = normalise([weight_of_code(code) for code in stored])
        saved = float((histogram * np.log2(np.array(better) / np.array(gaussian))).sum())
        if saved > CODE_BITS * count + 8 and len(codes) < 255:
            codes[context] = bytes(stored)
    return Side(
        low,
        high,
        first,
        last,
        parity,
        codes,
        [one.mean for one in stream],
        [one.prior for one in stream],
        [one.segment for one in stream],
        [one.shifts for one in stream],
        [one.drift for one in stream],
    )


def _codes(histogram: Ints) -> list[int]:
    """Codes whose weights are in proportion to the counts, to about three per cent."""
    total = max(1, int(histogram.sum()))
    codes = []
    for count in histogram.tolist():
        weight = (count << (PRECISION + 4)) // total
        exponent = max(0, weight.bit_length() - 5)
        codes.append(1 + 16 * exponent + (weight >> exponent) - 16 if weight >= 16 else 0)
    return codes


def _contexts(one: _Prepared, first: int, last: int, parity: bool) -> Ints:
    contexts = np.clip(one.classes, first, last) - first
    if not parity:
        return contexts
    return 2 * contexts + (0 if one.codebooks is None else one.codebooks)


def _encode_stream(stream: Sequence[_Prepared], side: Side, states: Ints) -> bytes:
    """The words of one stream; `states` goes on, in place."""
    frequencies = side.tables()
    starts = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1)
    flat, count, lanes = frequencies.reshape(-1), frequencies.shape[1], len(states)
    words: list[npt.NDArray[np.uint16]] = []
    for one in reversed(stream):
        entries = _contexts(one, side.first, side.last, side.parity) * count + one.symbols - side.low
        one_frequencies, one_starts = flat[entries], starts[entries]
        cols = entries.shape[1]
        for row in range(len(entries) - 1, -1, -1):
            for start in range((cols - 1) // lanes * lanes, -1, -lanes):
                frequency, begin = one_frequencies[row, start : start + lanes], one_starts[row, start : start + lanes]
                here = states[: len(frequency)]
                full = np.flatnonzero(here >= frequency << (32 - PRECISION))
                words.append((here[full] & 0xFFFF).astype("<u2"))
                here[full] >>= 16
                quotient = here // frequency
                here[:] = (quotient << PRECISION) + here - quotient * frequency + begin
    return b"".join(word.tobytes() for word in reversed(words))

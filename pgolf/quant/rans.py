"""Entropy coding of symbol matrices: interleaved rANS with a table for each spread of the values. The decoder.

Quantised weights are close to Gaussian, and each column has a spread of its own. The spread of a column is estimated
from the rows above, as the mean magnitude of its symbols; the estimate falls into one of `CLASSES` classes, eight to
the octave, and the class chooses the table of frequencies. All of it is integer arithmetic (Duda, 2013, for rANS;
Giesen, 2014, for the interleaving), so encoder and decoder agree on every machine. Nothing but numpy is needed.

One chunk of a row is decoded at a time, a lane of the coder for each of its columns. The lanes run on through all
matrices of an artifact, so their states are stored once. See docs/artifact.md for the bytes.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Shape = tuple[int, int]

PRECISION = 14
"""Frequencies of a table add up to 2^PRECISION."""
LOW = 1 << 16
"""Least state of a lane; states lie below 2^32 and are filled up with words of 16 bits."""
UNIT = 1024
"""Mean magnitudes are counted in this fraction of a symbol."""
FIRST = 5
"""Binary logarithm of the least mean magnitude, in units, above class 0."""
CLASSES = 1 + 8 * (17 - FIRST)
DRIFT = 5
"""The moving mean of a column comes nearer to each symbol by 2^-DRIFT of the distance."""
EVERY_ROW, PERIOD = 64, 8
"""Estimates are renewed in each of the first rows, later once in so many."""
NARROW = 64
"""Matrices with fewer columns than this, and more rows, are coded with rows and columns exchanged."""
SHIFT_BITS = 12
"""Row shifts scale magnitudes by fixed-point powers of 2^(1/8) with so many fractional bits."""
MAX_SHIFT = 64
"""Row shifts lie between -MAX_SHIFT and MAX_SHIFT."""
MAX_BLOB = 1 << 24
"""Bytes that the side information of a stream may have."""

TRELLIS = np.array([[0, 1], [2, 3], [5, 4], [7, 6], [1, 0], [3, 2], [4, 5], [6, 7]], np.uint8)
"""Next state by state and parity. The eight-state code of Ungerboeck, as in JPEG 2000 Part 2: a state's lowest bit
chooses the codebook (multiples of the step, or those moved by half of one), the parity the subset in it."""


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


@dataclass(frozen=True)
class Side:
    """The side information of one stream.

    `low`, `high`: least and largest symbol. `first`, `last`: classes outside are taken as these. `parity`: whether
    symbols of the two codebooks of a trellis have tables of their own. `codes`: stored tables, context -> a code a
    symbol; other contexts use the Gaussian of their class. `means`: mean magnitude of every matrix, in units.
    `priors`: how many rows of that mean every column's estimate begins with, a matrix.
    `segments`: rows of a trellis segment of every matrix, or 0. `shifts`: row shifts of every matrix, or None.
    `drifts`: whether the matrix is coded as differences from the moving means of its columns.
    """

    low: int
    high: int
    first: int
    last: int
    parity: bool
    codes: dict[int, bytes]
    means: list[int]
    priors: list[int]
    segments: list[int]
    shifts: list[Ints | None]
    drifts: list[bool]

    def tables(self) -> Ints:
        """Frequencies [contexts, symbols]; a context is class - first, twice as many and one more with parity."""
        count = self.high - self.low + 1
        rows = []
        for context in range((self.last - self.first + 1) << self.parity):
            if context in self.codes:
                weights: Sequence[int] = [weight_of_code(code) for code in self.codes[context]]
            else:
                weights = gaussian_weights(self.first + (context >> self.parity), self.low, self.high)
            rows.append(normalise(weights))
        return np.array(rows, np.int64).reshape(-1, count)

    def pack(self) -> bytes:
        """The bytes that `unpack` reads."""
        stored = b"".join(struct.pack("<B", context) + codes for context, codes in sorted(self.codes.items()))
        head = struct.pack("<hhBBBB", self.low, self.high, self.first, self.last, self.parity, len(self.codes))
        matrices = b"".join(
            struct.pack("<IBHB", mean, prior, segment, (shifts is not None) + 2 * drift)
            for mean, prior, segment, shifts, drift in zip(
                self.means, self.priors, self.segments, self.shifts, self.drifts, strict=True
            )
        )
        shifts = b"".join(one.astype(np.int8).tobytes() for one in self.shifts if one is not None)
        return zlib.compress(head + stored + matrices + shifts, 9)

    @classmethod
    def unpack(cls, packed: bytes, shapes: Sequence[Shape]) -> "Side":
        """Read the side information of matrices of these (coded) shapes; ValueError when it does not fit them."""
        inflate = zlib.decompressobj()
        data = inflate.decompress(packed, MAX_BLOB)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("the side information is cut off or too long")
        low, high, first, last, parity, stored = struct.unpack_from("<hhBBBB", data)
        if not (-255 <= low <= high <= 255 and first <= last < CLASSES and parity in (0, 1)):
            raise ValueError("the side information contradicts itself")
        at, count = 8, high - low + 1
        codes: dict[int, bytes] = {}
        for _ in range(stored):
            codes[data[at]] = data[at + 1 : at + 1 + count]
            at += 1 + count
        means, priors, segments, flags = [], [], [], []
        for _ in shapes:
            mean, prior, segment, flag = struct.unpack_from("<IBHB", data, at)
            if not (1 <= mean <= 128 * UNIT and prior >= 1 and flag <= 3 and (parity or not segment)):
                raise ValueError("the side information of a matrix contradicts itself")
            means.append(mean)
            priors.append(prior)
            segments.append(segment)
            flags.append(flag)
            at += 8
        shifts: list[Ints | None] = []
        for flag, (rows, _) in zip(flags, shapes, strict=True):
            shifts.append(np.frombuffer(data, np.int8, rows, at).astype(np.int64) if flag & 1 else None)
            at += rows * (flag & 1)
        if at != len(data) or any(len(one) != count for one in codes.values()):
            raise ValueError("the side information has another length")
        if any(len(one) and np.abs(one).max() > MAX_SHIFT for one in shifts if one is not None):
            raise ValueError("a row shift is too large")
        return cls(
            low, high, first, last, bool(parity), codes, means, priors, segments, shifts, [flag > 1 for flag in flags]
        )


def is_exchanged(shape: Shape) -> bool:
    """Whether a matrix of this shape is coded with rows and columns exchanged."""
    return shape[1] < NARROW and shape[0] > shape[1]


def coded_shape(shape: Shape) -> Shape:
    """The shape of a matrix as it is coded."""
    return (shape[1], shape[0]) if is_exchanged(shape) else shape


def magnitude_units(symbols: Ints, shift: npt.ArrayLike) -> Ints:
    """What symbols add to the estimates of their columns: magnitudes in units, scaled by the row's shift."""
    return np.abs(symbols) * inverse_scales()[np.asarray(shift) + MAX_SHIFT] * UNIT >> SHIFT_BITS


def centre_of(moving: Ints) -> Ints:
    """The whole number nearest to every moving mean (in units)."""
    return (moving + UNIT // 2) // UNIT


def moved(moving: Ints, symbols: Ints) -> Ints:
    """The moving means of the columns after one more row of symbols."""
    return moving + ((symbols * UNIT - moving) >> DRIFT)


def estimate_rows(row: int) -> int:
    """How many rows the estimates used in this row have seen."""
    return row if row < EVERY_ROW else row - row % PERIOD


def classes_of(sums: Ints, rows: int | Ints) -> Ints:
    """The class of every column from the sum of its magnitudes over `rows` rows, those of the prior included."""
    return class_of_mean()[np.minimum(sums // rows, 128 * UNIT)]


class Columns:
    """What is known of the columns of one matrix from the rows above."""

    def __init__(self, cols: int, side: Side, index: int):
        self._first, self._last, self._parity = side.first, side.last, side.parity
        self._prior, self._segment = side.priors[index], side.segments[index]
        self._shifts, self._drift = side.shifts[index], side.drifts[index]
        self._sums = np.full(cols, self._prior * side.means[index], np.int64)
        self._classes = self._moving = np.zeros(cols, np.int64)
        self._states = np.zeros(cols, np.uint8)

    def contexts(self, row: int) -> Ints:
        """The table of every column for the next row."""
        if estimate_rows(row) == row:
            self._classes = classes_of(self._sums, row + self._prior)
        shifted = self._classes if self._shifts is None else self._classes + self._shifts[row]
        contexts = np.clip(shifted, self._first, self._last) - self._first
        if not self._parity:
            return contexts
        if self._segment and row % self._segment == 0:
            self._states[:] = 0
        return 2 * contexts + (self._states & 1 if self._segment else 0)

    def take(self, row: int, values: Ints) -> Ints:
        """Learn from the row that was decoded: the symbols, from what was coded of them."""
        self._sums += magnitude_units(values, 0 if self._shifts is None else self._shifts[row])
        symbols = values
        if self._drift:
            symbols = values + centre_of(self._moving)
            self._moving = moved(self._moving, symbols)
        if self._segment:
            self._states = TRELLIS[self._states, symbols & 1]
        return symbols


class Reader:
    """The lanes of a coded artifact on their way through its streams.

    Raises ValueError when the bytes are damaged; what they say about sizes is checked before memory is taken.
    """

    def __init__(self, lanes: int, states: bytes):
        if not lanes or len(states) != 4 * lanes:
            raise ValueError("the states of the lanes are cut off")
        self.states = np.frombuffer(states, "<u4").astype(np.int64)
        if (self.states < LOW).any():
            raise ValueError("a state of a lane is too small")
        self.words = np.empty(0, np.int64)
        self.position = 0

    def stream(self, payload: bytes, shapes: Sequence[Shape]) -> list[npt.NDArray[np.int8]]:
        """The matrices of one stream, in order, from its bytes."""
        (length,) = struct.unpack_from("<I", payload)
        side = Side.unpack(payload[4 : 4 + length], [coded_shape(shape) for shape in shapes])
        words = payload[4 + length :]
        self.words, self.position = np.frombuffer(words, "<u2").astype(np.int64), 0
        step = self._step(side)
        matrices = []
        for index, shape in enumerate(shapes):
            matrix = self._matrix(coded_shape(shape), side, index, step)
            matrices.append(np.ascontiguousarray(matrix.T) if is_exchanged(shape) else matrix)
        if self.position != len(self.words):
            raise ValueError("words are left over")
        return matrices

    def finish(self) -> None:
        """Raise ValueError unless every lane ended where the encoder began."""
        if (self.states != LOW).any():
            raise ValueError("a lane does not end where it should")

    def _step(self, side: Side) -> Callable[[slice, Ints], Ints]:
        """A function that decodes one chunk: its lanes and contexts -> its symbols."""
        frequencies = side.tables()
        count = frequencies.shape[1]
        starts = np.cumsum(frequencies, axis=1) - frequencies
        symbol_of = np.concatenate([np.repeat(np.arange(count, dtype=np.int16), row) for row in frequencies])
        flat_frequencies, flat_starts, mask = frequencies.reshape(-1), starts.reshape(-1), (1 << PRECISION) - 1

        def step(lanes: slice, contexts: Ints) -> Ints:
            states = self.states[lanes]
            slots = states & mask
            symbols = symbol_of.take((contexts << PRECISION) + slots)
            entries = contexts * count + symbols
            states = flat_frequencies.take(entries) * (states >> PRECISION) + slots - flat_starts.take(entries)
            empty = np.flatnonzero(states < LOW)
            words = self.words[self.position : self.position + len(empty)]
            if len(words) != len(empty):
                raise ValueError("words are missing")
            self.position += len(empty)
            states[empty] = (states[empty] << 16) | words
            self.states[lanes] = states
            return symbols + side.low

        return step

    def _matrix(
        self, shape: Shape, side: Side, index: int, step: Callable[[slice, Ints], Ints]
    ) -> npt.NDArray[np.int8]:
        rows, cols = shape
        lanes, columns = len(self.states), Columns(cols, side, index)
        result = np.empty(shape, np.int8)
        values = np.empty(cols, np.int64)
        for row in range(rows):
            contexts = columns.contexts(row)
            for start in range(0, cols, lanes):
                chunk = contexts[start : start + lanes]
                values[start : start + lanes] = step(slice(0, len(chunk)), chunk)
            result[row] = columns.take(row, values)
        return result


def decode(payloads: Sequence[bytes], shapes: Sequence[Sequence[Shape]]) -> list[list[npt.NDArray[np.int8]]]:
    """The matrices of every stream, given their shapes; ValueError when the bytes are damaged."""
    if not payloads:
        return []
    try:
        (lanes,) = struct.unpack_from("<H", payloads[0])
        reader = Reader(lanes, payloads[0][2 : 2 + 4 * lanes])
        bodies = [payloads[0][2 + 4 * lanes :], *payloads[1:]]
        matrices = [reader.stream(body, one) for body, one in zip(bodies, shapes, strict=True)]
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"the side information is damaged ({error})") from error
    reader.finish()
    return matrices

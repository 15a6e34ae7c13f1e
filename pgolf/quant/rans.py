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

import numpy as np
import numpy.typing as npt

from pgolf.quant.rans_side import Form, Shape, Side
from pgolf.quant.rans_tables import MAX_SHIFT, PRECISION, SHIFT_BITS, UNIT, Ints, class_of_mean, inverse_scales

LOW = 1 << 16
"""Least state of a lane; states lie below 2^32 and are filled up with words of 16 bits."""
EVERY_ROW, PERIOD = 64, 8
"""Estimates are renewed in each of the first rows, later once in so many."""
NARROW = 64
"""Matrices with fewer columns than this, and more rows, are coded with rows and columns exchanged."""
MAX_STEPS = 1 << 20
"""Steps of the decoder, a chunk of a row each, in one artifact: half a minute on one core. The published models take
some 80,000. Without it a file of 335 bytes could keep a reader busy for hours: a table of one value needs no words."""

TRELLIS = np.array([[0, 1], [2, 3], [5, 4], [7, 6], [1, 0], [3, 2], [4, 5], [6, 7]], np.uint8)
"""Next state by state and parity. The eight-state code of Ungerboeck, as in JPEG 2000 Part 2: a state's lowest bit
chooses the codebook (multiples of the step, or those moved by half of one), the parity the subset in it."""


def is_exchanged(shape: Shape) -> bool:
    """Whether a matrix of this shape is coded with rows and columns exchanged."""
    return shape[1] < NARROW and shape[0] > shape[1]


def coded_shape(shape: Shape) -> Shape:
    """The shape of a matrix as it is coded."""
    return (shape[1], shape[0]) if is_exchanged(shape) else shape


def check_steps(shapes: Sequence[Shape], lanes: int) -> None:
    """ValueError when matrices of these shapes take more than MAX_STEPS steps with so many lanes."""
    coded = [coded_shape(shape) for shape in shapes]
    steps = sum(rows * -(-cols // lanes) for rows, cols in coded)
    if steps > MAX_STEPS:
        raise ValueError(
            f"its {len(shapes)} matrices take {steps:,} steps with {lanes} lanes, the limit is {MAX_STEPS:,}"
        )


def magnitude_units(symbols: Ints, shift: npt.ArrayLike) -> Ints:
    """What symbols add to the estimates of their columns: magnitudes in units, scaled by the row's shift."""
    return np.abs(symbols) * inverse_scales()[np.asarray(shift) + MAX_SHIFT] * UNIT >> SHIFT_BITS


def centre_of(moving: Ints) -> Ints:
    """The whole number nearest to every moving mean (in units)."""
    return (moving + UNIT // 2) // UNIT


def moved(moving: Ints, symbols: Ints, drift: int) -> Ints:
    """The moving means of the columns after one more row of symbols."""
    return moving + ((symbols * UNIT - moving) >> drift)


def classes_of(sums: Ints, rows: int | Ints) -> Ints:
    """The class of every column from the sum of its magnitudes over `rows` rows, those of the prior included."""
    return class_of_mean()[np.minimum(sums // rows, 128 * UNIT)]


class Spreads:
    """The estimates of the spread of every column of one matrix, from the rows above."""

    def __init__(self, cols: int, form: Form):
        self._limit = 1 << form.memory if form.memory else 0
        self._rows = min(form.prior, self._limit) if self._limit else form.prior
        self._sums = np.full(cols, self._rows * form.mean, np.int64)
        self._classes = np.zeros(cols, np.int64)

    def classes(self, row: int) -> Ints:
        """The class of every column for this row; all rows above were taken."""
        if self._limit or row < EVERY_ROW or row % PERIOD == 0:
            self._classes = classes_of(self._sums, self._rows)
        return self._classes

    def take(self, magnitudes: Ints) -> None:
        """Learn from one more row; with a memory, its oldest part is forgotten once it is full."""
        if self._rows == self._limit:
            self._sums -= self._sums // self._limit
        else:
            self._rows += 1
        self._sums += magnitudes


class Columns:
    """What is known of the columns of one matrix from the rows above."""

    def __init__(self, cols: int, side: Side, form: Form):
        self._side, self._form, self._spreads = side, form, Spreads(cols, form)
        self._moving = np.zeros(cols, np.int64)
        self._states = np.zeros(cols, np.uint8)

    def contexts(self, row: int) -> Ints:
        """The table of every column for the next row."""
        side, form, classes = self._side, self._form, self._spreads.classes(row)
        shifted = classes if form.shifts is None else classes + form.shifts[row]
        contexts = np.clip(shifted, side.first, side.last) - side.first
        if not side.parity:
            return contexts
        if form.segment and row % form.segment == 0:
            self._states[:] = 0
        return 2 * contexts + (self._states & 1 if form.segment else 0)

    def take(self, row: int, values: Ints) -> Ints:
        """Learn from the row that was decoded: the symbols, from what was coded of them."""
        form = self._form
        self._spreads.take(magnitude_units(values, 0 if form.shifts is None else form.shifts[row]))
        symbols = values
        if form.drift:
            symbols = values + centre_of(self._moving)
            self._moving = moved(self._moving, symbols, form.drift)
        if form.segment:
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
        for form, shape in zip(side.forms, shapes, strict=True):
            matrix = self._matrix(coded_shape(shape), side, form, step)
            matrices.append(np.ascontiguousarray(matrix.T) if is_exchanged(shape) else matrix)
        if self.position != len(self.words):
            raise ValueError("words are left over")
        return matrices

    def finish(self) -> None:
        """Raise ValueError unless every lane ended where the encoder began."""
        if (self.states != LOW).any():
            raise ValueError("a lane does not end where it should")

    def _step(self, side: Side) -> Callable[[slice, Ints], Ints]:
        """A function that decodes one chunk: its lanes and contexts -> its values."""
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
        self, shape: Shape, side: Side, form: Form, step: Callable[[slice, Ints], Ints]
    ) -> npt.NDArray[np.int8]:
        rows, cols = shape if form.repeats is None else (int((form.repeats == 0).sum()), shape[1])
        lanes, columns = len(self.states), Columns(cols, side, form)
        coded = np.empty((rows, cols), np.int8)
        values = np.empty(cols, np.int64)
        for row in range(rows):
            contexts = columns.contexts(row)
            for start in range(0, cols, lanes):
                chunk = contexts[start : start + lanes]
                values[start : start + lanes] = step(slice(0, len(chunk)), chunk)
            coded[row] = columns.take(row, values)
        if form.repeats is None:
            return coded
        return coded[np.where(form.repeats == 0, np.cumsum(form.repeats == 0), form.repeats) - 1]


def decode(payloads: Sequence[bytes], shapes: Sequence[Sequence[Shape]]) -> list[list[npt.NDArray[np.int8]]]:
    """The matrices of every stream, given their shapes; ValueError when the bytes are damaged."""
    if not payloads:
        return []
    try:
        (lanes,) = struct.unpack_from("<H", payloads[0])
        reader = Reader(lanes, payloads[0][2 : 2 + 4 * lanes])
        check_steps([shape for stream in shapes for shape in stream], lanes)
        bodies = [payloads[0][2 + 4 * lanes :], *payloads[1:]]
        matrices = [reader.stream(body, one) for body, one in zip(bodies, shapes, strict=True)]
    except (struct.error, zlib.error, IndexError) as error:
        raise ValueError(f"the side information is damaged ({error})") from error
    reader.finish()
    return matrices

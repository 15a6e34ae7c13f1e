"""The side information of `pgolf.quant.rans`: what a decoder is told about a stream before its words."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pgolf.quant.rans_tables import CLASSES, MAX_SHIFT, UNIT, Ints, gaussian_weights, normalise, weight_of_code

Shape = tuple[int, int]

MAX_BLOB = 1 << 24
"""Bytes that the side information of a stream may have."""
HEAD, FORM = struct.Struct("<hhBBBB"), struct.Struct("<IBHBB")
SHIFTS, REPEATS = 1, 2
"""Flags of a matrix."""
MAX_RATE = 12
"""Greatest drift and memory, binary logarithms of rows."""


@dataclass(frozen=True)
class Form:
    """How one matrix is coded.

    `mean`: mean magnitude of its values, in units. `prior`: how many rows of that mean every column's estimate begins
    with. `segment`: rows of a trellis segment, or 0. `drift`: 0, or what is coded are differences from moving means of
    the columns, which come nearer to each value by 2^-drift of the distance. `memory`: 0, or estimates forget: they
    are means over about 2^memory rows. `shifts`: for each coded row, eighths of an octave by which its spread differs;
    or None. `repeats`: for each row of the matrix 0 where it is coded, else 1 + the number of the coded row above that
    it equals; or None.
    """

    mean: int
    prior: int
    segment: int = 0
    drift: int = 0
    memory: int = 0
    shifts: Ints | None = None
    repeats: Ints | None = None


@dataclass(frozen=True)
class Side:
    """The side information of one stream.

    `low`, `high`: least and largest value. `first`, `last`: classes outside are taken as these. `parity`: whether
    symbols of the two codebooks of a trellis have tables of their own. `codes`: stored tables, context -> a code a
    value; other contexts use the Gaussian of their class. `forms`: one for each matrix.
    """

    low: int
    high: int
    first: int
    last: int
    parity: bool
    codes: dict[int, bytes]
    forms: list[Form]

    def tables(self) -> Ints:
        """Frequencies [contexts, values]; a context is class - first, twice as many and one more with parity."""
        count = self.high - self.low + 1
        rows = []
        for context in range((self.last - self.first + 1) << self.parity):
            if context in self.codes:
                weights: Sequence[int] = [weight_of_code(code) for code in self.codes[context]]
            else:
                weights = gaussian_weights(self.first + (context >> self.parity), self.low, self.high)
            rows.append(normalise(weights))
        return np.array(rows, np.int64).reshape(-1, count)

    @classmethod
    def unpack(cls, packed: bytes, shapes: Sequence[Shape]) -> Self:
        """Read the side information of matrices of these (coded) shapes; ValueError when it does not fit them."""
        inflate = zlib.decompressobj()
        data = inflate.decompress(packed, MAX_BLOB)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("the side information is cut off or too long")
        low, high, first, last, parity, stored = HEAD.unpack_from(data)
        if not (-255 <= low <= high <= 255 and first <= last < CLASSES and parity in (0, 1)):
            raise ValueError("the side information contradicts itself")
        at, count = HEAD.size, high - low + 1
        codes: dict[int, bytes] = {}
        for _ in range(stored):
            codes[data[at]] = data[at + 1 : at + 1 + count]
            at += 1 + count
        if any(len(one) != count for one in codes.values()):
            raise ValueError("a stored table is cut off")
        fields = [FORM.unpack_from(data, at + FORM.size * index) for index in range(len(shapes))]
        at += FORM.size * len(shapes)
        forms = []
        for (rows, _), values in zip(shapes, fields, strict=True):
            form, at = _form(values, data, at, rows)
            if form.segment and not parity:
                raise ValueError("a trellis has no tables for its codebooks")
            forms.append(form)
        if at != len(data):
            raise ValueError("the side information has another length")
        return cls(low, high, first, last, bool(parity), codes, forms)


def _form(fields: tuple[int, ...], data: bytes, at: int, rows: int) -> tuple[Form, int]:
    """A matrix's form from its fields and what lies at `at`, and where the next one's lies."""
    mean, prior, segment, flags, rates = fields
    drift, memory = rates & 15, rates >> 4
    if not (1 <= mean <= 128 * UNIT and prior and flags < 4 and max(drift, memory) <= MAX_RATE):
        raise ValueError("the side information of a matrix contradicts itself")
    shifts = repeats = None
    if flags & REPEATS:
        if segment:
            raise ValueError("rows of a trellis cannot repeat others")
        planes = np.frombuffer(data, np.uint8, 2 * rows, at).reshape(2, rows).astype(np.int64)
        repeats = planes[0] + 256 * planes[1]
        if (repeats > np.cumsum(repeats == 0)).any():
            raise ValueError("a row repeats one that is not there yet")
        at, rows = at + 2 * rows, int((repeats == 0).sum())
    if flags & SHIFTS:
        shifts = np.frombuffer(data, np.int8, rows, at).astype(np.int64)
        if len(shifts) and np.abs(shifts).max() > MAX_SHIFT:
            raise ValueError("a row shift is too large")
        at += rows
    return Form(mean, prior, segment, drift, memory, shifts, repeats), at

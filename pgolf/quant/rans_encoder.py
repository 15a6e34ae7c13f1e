"""The encoder of `pgolf.quant.rans`: tables where they pay, then rANS backwards. `rans_forms` chooses the contexts."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pgolf.errors import UserError
from pgolf.quant.rans import LOW, check_steps
from pgolf.quant.rans_forms import CODE_BITS, Matrix, Prepared, histograms, prepare
from pgolf.quant.rans_side import FORM, HEAD, REPEATS, SHIFTS, Form, Side
from pgolf.quant.rans_tables import CLASSES, PRECISION, Ints, gaussian_weights, normalise, weight_of_code

__all__ = ["Matrix", "encode"]

MAX_LANES = 512
SYMBOLS_PER_LANE = 1 << 13
"""A lane costs two bytes, which so many symbols should bear."""
LEAST_SYMBOLS = 4096
"""Classes at both ends with fewer symbols than this are merged into their neighbours."""


def encode(streams: Sequence[Sequence[Matrix]]) -> list[bytes]:
    """The payload of every stream of matrices; `pgolf.quant.rans.decode` reads them, all in order.

    Raises UserError when that would take it too many steps.
    """
    if not streams:
        return []
    prepared = [[prepare(matrix) for matrix in stream] for stream in streams]
    total = sum(one.values.size for stream in prepared for one in stream)
    widest = max((one.values.shape[1] for stream in prepared for one in stream), default=1)
    lanes = max(1, min(MAX_LANES, widest, total // SYMBOLS_PER_LANE))
    try:
        check_steps([matrix.symbols.shape for stream in streams for matrix in stream], lanes)
    except ValueError as error:
        raise UserError(f"quant.coder=rans cannot code this model: {error}. Choose another coder.") from error
    states = np.full(lanes, LOW, np.int64)
    payloads = []
    for stream in reversed(prepared):  # the decoder begins where the encoder ends
        side = _side(stream)
        packed = pack_side(side)
        words = _encode_stream(stream, side, states)
        payloads.append(struct.pack("<I", len(packed)) + packed + words)
    payloads.reverse()
    payloads[0] = struct.pack("<H", lanes) + states.astype("<u4").tobytes() + payloads[0]
    return payloads


def _side(stream: Sequence[Prepared]) -> Side:
    """Ranges, and the tables that are worth storing."""
    low = min((int(one.values.min()) for one in stream if one.values.size), default=0)
    high = max((int(one.values.max()) for one in stream if one.values.size), default=0)
    parity = any(one.form.segment for one in stream)
    sizes = sum((np.bincount(one.classes.reshape(-1), minlength=CLASSES) for one in stream), np.zeros(CLASSES, int))
    large = np.flatnonzero(sizes >= min(LEAST_SYMBOLS, sizes.max()))
    first, last, count = int(large[0]), int(large[-1]), high - low + 1
    num_contexts = (last - first + 1) << parity
    found = np.zeros((num_contexts, count), np.int64)
    for one in stream:
        found += histograms(one.values, _contexts(one, first, last, parity), num_contexts, low, count)
    codes: dict[int, bytes] = {}
    for context, histogram in enumerate(found):
        gaussian = normalise(gaussian_weights(first + (context >> parity), low, high))
        stored = _codes(histogram)
        better = normalise([weight_of_code(code) for code in stored])
        saved = float((histogram * np.log2(np.array(better) / np.array(gaussian))).sum())
        if saved > CODE_BITS * count + 8 and len(codes) < 255:
            codes[context] = bytes(stored)
    return Side(low, high, first, last, parity, codes, [one.form for one in stream])


def pack_side(side: Side) -> bytes:
    """The bytes that `Side.unpack` reads."""
    head = HEAD.pack(side.low, side.high, side.first, side.last, side.parity, len(side.codes))
    stored = b"".join(struct.pack("<B", context) + codes for context, codes in sorted(side.codes.items()))
    fields = b"".join(_fields(form) for form in side.forms)
    return zlib.compress(head + stored + fields + b"".join(_rows(form) for form in side.forms), 9)


def _fields(form: Form) -> bytes:
    flags = SHIFTS * (form.shifts is not None) + REPEATS * (form.repeats is not None)
    return FORM.pack(form.mean, form.prior, form.segment, flags, form.drift + 16 * form.memory)


def _rows(form: Form) -> bytes:
    """What is told of single rows: the repetitions, low bytes before high ones, then the shifts."""
    found = b""
    if form.repeats is not None:
        found += (form.repeats & 255).astype(np.uint8).tobytes() + (form.repeats >> 8).astype(np.uint8).tobytes()
    return found if form.shifts is None else found + form.shifts.astype(np.int8).tobytes()


def _codes(histogram: Ints) -> list[int]:
    """Codes whose weights are in proportion to the counts, to about three per cent."""
    total = max(1, int(histogram.sum()))
    codes = []
    for count in histogram.tolist():
        weight = (count << (PRECISION + 4)) // total
        exponent = max(0, weight.bit_length() - 5)
        codes.append(1 + 16 * exponent + (weight >> exponent) - 16 if weight >= 16 else 0)
    return codes


def _contexts(one: Prepared, first: int, last: int, parity: bool) -> Ints:
    contexts = np.clip(one.classes, first, last) - first
    if not parity:
        return contexts
    return 2 * contexts + (0 if one.codebooks is None else one.codebooks)


def _encode_stream(stream: Sequence[Prepared], side: Side, states: Ints) -> bytes:
    """The words of one stream; `states` goes on, in place."""
    frequencies = side.tables()
    starts = (np.cumsum(frequencies, axis=1) - frequencies).reshape(-1)
    flat, count, lanes = frequencies.reshape(-1), frequencies.shape[1], len(states)
    words: list[npt.NDArray[np.uint16]] = []
    for one in reversed(stream):
        entries = _contexts(one, side.first, side.last, side.parity) * count + one.values - side.low
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

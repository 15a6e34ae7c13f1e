"""What a quantised tensor is made of, and how it becomes a tensor again: all that loading needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.rans import TRELLIS

Parts = dict[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """One tensor as symbols and side information.

    `decoder` is a key of DECODERS, where the parts of each are described; `scheme` is the label people read
    ("gptq int6"); `shape` is the tensor's; `parts` holds numpy arrays by name.
    """

    decoder: str
    scheme: str
    shape: Shape
    parts: Parts


def unpack_base3(packed: np.ndarray, count: int) -> np.ndarray:
    """`count` symbols -1, 0, 1 from bytes of five base-3 digits each, the first the least significant; int8 [count]."""
    powers = np.array([1, 3, 9, 27, 81], np.uint16)
    digits = packed.astype(np.uint16)[:, None] // powers % 3
    return digits.reshape(-1)[:count].astype(np.int8) - 1


def unpack_bits(packed: np.ndarray, count: int) -> np.ndarray:
    """`count` bits from bytes, the least significant bit first; uint8 [count]. ValueError when there are fewer."""
    _require(8 * len(packed) >= count, "bits are missing")
    return np.unpackbits(packed, count=count, bitorder="little")


def _require(condition: bool, otherwise: str) -> None:
    """Raise ValueError where parts do not fit. Asked before memory is taken: the parts may come from a hostile file,
    and broadcasting would make much of little."""
    if not condition:
        raise ValueError(otherwise)


def trellis_codebooks(symbols: np.ndarray, segment: int) -> np.ndarray:
    """The codebook (0 or 1) that each symbol was taken from; uint8 [rows, cols].

    `symbols` int8 [rows, cols]. Down each column runs a path through the trellis of eight states, begun anew every
    `segment` rows; a symbol's parity chooses the next state, and the state's lowest bit the codebook.
    """
    rows, cols = symbols.shape
    codebooks = np.empty((rows, cols), np.uint8)
    parity = (symbols & 1).astype(np.uint8)
    segments = range(0, rows, segment)
    states = np.zeros((len(segments), cols), np.uint8)
    for step in range(min(segment, rows)):
        here = slice(step, rows, segment)
        active = states[: len(range(step, rows, segment))]
        codebooks[here] = active & 1
        states[: len(active)] = TRELLIS[active, parity[here]]
    return codebooks


def _decode_rows(parts: Parts, shape: Shape) -> Tensor:
    """Symbols times the step of their row, float32.

    Parts: `symbols` int8 [rows, cols] (or the tensor's shape where `scales` is a single number); `scales` [rows] or
    []. A finer grid for groups of columns (AWQ-lite): `group_starts` [groups] and `group_size` [] name the columns,
    `group_scales` [rows] their steps. A correction of low rank (LQER): `factor_a` int8 [rows, rank] times `scales_a`
    ([] or [rows]), and `factor_b` int8 [rank, cols] times `scales_b` ([rank], or one for each run of
    rank * cols / len elements in row-major order).
    """
    symbols = torch.from_numpy(parts["symbols"]).float()
    scales = torch.from_numpy(parts["scales"]).float()
    _require(scales.ndim == 0 or (symbols.ndim == 2 and scales.shape == symbols.shape[:1]), "scales and rows differ")
    values = symbols * (scales if scales.ndim == 0 else scales[:, None])
    if "group_starts" in parts:
        size, group_scales = int(parts["group_size"]), torch.from_numpy(parts["group_scales"]).float()
        _require(group_scales.shape == symbols.shape[:1], "scales of groups and rows differ")
        groups = len(parts["group_starts"])
        _require(size >= 1 and (groups - 1) * size < symbols.shape[1], "groups of columns overlap")
        for start in parts["group_starts"].tolist():
            columns = slice(start, start + size)
            values[:, columns] = symbols[:, columns] * group_scales[:, None]
    if "factor_a" in parts:
        ends = (*parts["factor_a"].shape[:1], *parts["factor_b"].shape[1:])
        _require(ends == tuple(symbols.shape), "the factors have another shape")
        values = values + low_rank(parts)
    return values


def low_rank(parts: Parts) -> Tensor:
    """The low-rank correction of a tensor from its parts, float32 [rows, cols]."""
    factor_a, factor_b = (torch.from_numpy(parts[name]).float() for name in ("factor_a", "factor_b"))
    scales_a, scales_b = (torch.from_numpy(parts[name]).float() for name in ("scales_a", "scales_b"))
    _require(scales_a.ndim == 0 or scales_a.shape == factor_a.shape[:1], "scales and rows of a factor differ")
    left = factor_a * (scales_a if scales_a.ndim == 0 else scales_a[:, None])
    right = (factor_b.reshape(len(scales_b), -1) * scales_b[:, None]).reshape(factor_b.shape)
    return left @ right


def _decode_plain(parts: Parts, shape: Shape) -> Tensor:
    """The values as they were stored: `values` in the tensor's shape."""
    return torch.from_numpy(parts["values"])


def _decode_bfloat16(parts: Parts, shape: Shape) -> Tensor:
    """bfloat16 from `values`, its bits as uint16 in the tensor's shape."""
    return torch.from_numpy(parts["values"].view(np.int16)).view(torch.bfloat16)


def _decode_float8(parts: Parts, shape: Shape) -> Tensor:
    """float32 from `values`, float8 (e4m3) bits as uint8 in the tensor's shape."""
    return torch.from_numpy(parts["values"]).view(torch.float8_e4m3fn).float()


def _decode_groups(parts: Parts, shape: Shape) -> Tensor:
    """Symbols of one or two bits times the scale of their group, float32.

    Parts: `scales` [groups], each for a run of elements in row-major order (the last run may be shorter);
    `group_size` []; and the symbols -1, 0, 1 in one of three forms: `symbols` int8 in the tensor's shape, `base3`
    uint8 (`unpack_base3`), or `signs` uint8 of one bit each, 1 for positive, where `mask`, of one bit each, if there
    is one, tells which elements are not zero and have a sign.
    """
    count, size, scales = math.prod(shape), int(parts["group_size"]), torch.from_numpy(parts["scales"]).float()
    _require(size >= 1 and scales.shape == (-(-count // size),), "scales and groups differ")
    if "symbols" in parts:
        symbols = parts["symbols"].reshape(-1)
    elif "base3" in parts:
        symbols = unpack_base3(parts["base3"], count)
    else:
        bits = parts.get("mask", parts["signs"])
        mask = unpack_bits(bits, count).astype(bool)
        mask = mask if "mask" in parts else np.ones(count, bool)
        symbols = np.zeros(count, np.int8)
        symbols[mask] = 2 * unpack_bits(parts["signs"], int(mask.sum())).astype(np.int8) - 1
    spread = scales.repeat_interleave(min(size, count))[:count]
    _require(len(symbols) == count, "symbols are missing")
    return (torch.from_numpy(symbols).float() * spread).reshape(shape)


def _decode_steps(parts: Parts, shape: Shape) -> Tensor:
    """Symbols times steps on a logarithmic grid, float32.

    Parts: `symbols` int8 [rows, cols]; `steps` int16 [rows] or [1], see `grid_steps`; with `trellis_segment`
    [], the symbols are those of a trellis (`trellis_codebooks`): value = (symbol + codebook / 2 - 1 / 4) * step, and
    with `trellis_zero` [] besides, value = (symbol - sign of symbol * codebook / 2) * step.
    """
    symbols, steps = parts["symbols"], parts["steps"]
    _require(symbols.ndim == 2 and steps.shape in ((1,), symbols.shape[:1]), "steps and rows differ")
    values = torch.from_numpy(symbols).float()
    if "trellis_segment" in parts:
        segment = int(parts["trellis_segment"])
        _require(1 <= segment < 1 << 16, "a segment of the trellis has no rows, or too many")
        codebooks = torch.from_numpy(trellis_codebooks(symbols, segment)).float()
        zero = "trellis_zero" in parts
        values = values - values.sign() * 0.5 * codebooks if zero else values + (0.5 * codebooks - 0.25)
    return values * grid_steps(torch.from_numpy(steps))[:, None]


def grid_of(count: int) -> int:
    """Steps of an octave where a matrix has `count` steps: 16, and 256 for a single one. A grid of 16 costs less than
    0.001 bit, but one step for a whole embedding would move the artifact's size by more than 0.1 % at once."""
    return 256 if count == 1 else 16


def grid_steps(exponents: Tensor) -> Tensor:
    """Steps 2^(e / grid), float32 [count]. The fraction comes from a table, the rest is exact: the same bits
    everywhere."""
    exponents, grid = exponents.to(torch.int64), grid_of(len(exponents))
    fraction = torch.tensor([2.0 ** (i / grid) for i in range(grid)], dtype=torch.float32)
    return torch.ldexp(fraction[exponents % grid], torch.div(exponents, grid, rounding_mode="floor"))


DECODERS: dict[str, Callable[[Parts, Shape], Tensor]] = {
    "rows": _decode_rows,
    "plain": _decode_plain,
    "bfloat16": _decode_bfloat16,
    "float8": _decode_float8,
    "groups": _decode_groups,
    "steps": _decode_steps,
}


def decode(encoded: Encoded) -> Tensor:
    """The dequantised tensor; float32 for quantised values, else the stored dtype.

    Raises ValueError when the decoder is unknown, a part is missing or a shape does not fit.
    """
    if encoded.decoder not in DECODERS:
        raise ValueError(f"unknown decoder {encoded.decoder!r}; this version knows {', '.join(DECODERS)}.")
    try:
        tensor = DECODERS[encoded.decoder](encoded.parts, encoded.shape)
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the parts of the tensor do not fit together ({error}).") from error
    if tuple(tensor.shape) != encoded.shape:
        raise ValueError(f"decoded shape {tuple(tensor.shape)} is not {encoded.shape}.")
    return tensor

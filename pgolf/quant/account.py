"""Where the bytes of an artifact are: by tensor, by class, and against the entropy of its symbols."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.quant import container
from pgolf.quant.coders import CODERS
from pgolf.quant.container import StoredTensor
from pgolf.quant.packer import stream_name
from pgolf.quant.rans_forms import Matrix, prepare

SUMMED = ("symbols", "symbol_bytes", "entropy_bytes", "adaptive_bytes")
"""Keys of a row that only tensors with symbols have."""


def entropy_bits(values: np.ndarray) -> float:
    """Empirical entropy of an array in bits, its elements taken as independent and alike; floats byte by byte."""
    if values.dtype != np.int8:
        planes = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, values.dtype.itemsize)
        return sum(_entropy(plane) for plane in planes.T)
    return _entropy(values.view(np.uint8))


def _entropy(values: np.ndarray) -> float:
    counts = np.bincount(values.reshape(-1), minlength=1)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def account(path: Path) -> dict[str, Any]:
    """What an artifact spends its bytes on.

    Returns {path, coder, total_bytes, header_bytes, tensors, classes}. Rows of `tensors` and `classes`: {role, scheme,
    elements, bytes, bits_per_weight, symbols, symbol_bytes, entropy_bytes, over_entropy, adaptive_bytes,
    over_adaptive}; those of tensors have a `tensor`, those of classes a number of `tensors`. A stream that several
    tensors share is split between them in proportion to their entropy (under rans, to their adaptive cost), so the
    bytes of all tensors and the header add up to the file.

    `entropy_bytes` is the order-0 entropy of a tensor's symbols: the bound for a coder that takes them as independent
    and alike. `adaptive_bytes` is what they cost one that learns the spread of each column from the rows above and
    knows rows that repeat (`pgolf.quant.rans_forms`), tables included, states and numbers of rows not. `over_...` is
    what the coder needed for them over each (below 1: the coder knew more). All are None for tensors without symbols;
    where the symbols are no matrix, the two are one.

    Raises UserError when the file is damaged.
    """
    header, offset = container.read_header(path)
    tensors, _ = container.read(path, as_stored=True)
    bits = [{part: entropy_bits(array) for part, array in tensor.encoded.parts.items()} for tensor in tensors]
    adaptive = [_adaptive_bits(tensor, one.get("symbols")) for tensor, one in zip(tensors, bits, strict=True)]
    weights = bits
    if CODERS[header.coder].matrices:
        weights = [one if cost is None else one | {"symbols": cost} for one, cost in zip(bits, adaptive, strict=True)]
    shares = _shares(tensors, weights, {stream.name: stream.coded for stream in header.streams})
    rows = [_row(*one) for one in zip(tensors, bits, adaptive, shares, strict=True)]
    return {
        "path": str(path),
        "coder": header.coder,
        "total_bytes": Path(path).stat().st_size,
        "header_bytes": offset,
        "tensors": rows,
        "classes": _classes(rows),
    }


def _shares(tensors: list[StoredTensor], bits: list[dict[str, float]], coded: dict[str, int]) -> list[dict[str, int]]:
    """Bytes of every part of every tensor. The sums are exact: what rounding leaves goes to the stream's last part."""
    members: dict[str, list[tuple[int, str]]] = {}
    for index, tensor in enumerate(tensors):
        for part in tensor.encoded.parts:
            members.setdefault(stream_name(tensor, part), []).append((index, part))
    shares: list[dict[str, int]] = [{} for _ in tensors]
    for name, owners in members.items():
        total = sum(bits[index][part] for index, part in owners) or 1.0
        for index, part in owners:
            shares[index][part] = int(coded[name] * bits[index][part] / total)
        last, part = owners[-1]
        shares[last][part] += coded[name] - sum(shares[index][part] for index, part in owners)
    return shares


def _row(
    tensor: StoredTensor, bits: dict[str, float], adaptive: float | None, shares: dict[str, int]
) -> dict[str, Any]:
    elements, size = math.prod(tensor.encoded.shape), sum(shares.values())
    row: dict[str, Any] = {"tensor": tensor.name, "role": tensor.role, "scheme": tensor.encoded.scheme}
    row |= {"elements": elements, "bytes": size, **dict.fromkeys(SUMMED)}
    if adaptive is not None:
        row |= {"symbols": tensor.encoded.parts["symbols"].size, "symbol_bytes": shares["symbols"]}
        row |= {"entropy_bytes": bits["symbols"] / 8, "adaptive_bytes": adaptive / 8}
    return row | _ratios(row)


def _adaptive_bits(tensor: StoredTensor, entropy: float | None) -> float | None:
    """What symbols cost a coder that learns the spread of their columns, or their entropy where that is less."""
    if entropy is None:
        return None
    symbols = tensor.encoded.parts["symbols"]
    if symbols.ndim != 2 or symbols.dtype != np.int8 or not symbols.size:
        return entropy
    return min(entropy, prepare(Matrix(symbols, int(tensor.encoded.parts.get("trellis_segment", 0)))).bits)


def _ratios(row: dict[str, Any]) -> dict[str, float | None]:
    def over(bound: str) -> float | None:
        return row["symbol_bytes"] / row[bound] if row["symbol_bytes"] is not None and row[bound] else None

    return {
        "bits_per_weight": 8 * row["bytes"] / row["elements"] if row["elements"] else 0.0,
        "over_entropy": over("entropy_bytes"),
        "over_adaptive": over("adaptive_bytes"),
    }


def _classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows summed by role and scheme."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["scheme"]), []).append(row)
    return [
        {"role": role, "scheme": scheme, "tensors": len(members), **total(members)}
        for (role, scheme), members in groups.items()
    ]


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What rows of tensors or classes sum up to."""
    sums = {key: sum(row[key] for row in rows) for key in ("elements", "bytes")}
    sums |= {key: _sum(row[key] for row in rows) for key in SUMMED}
    return sums | _ratios(sums)


def _sum(values: Iterable[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

"""Where the bytes of an artifact are: by tensor, by class, and against the entropy of its symbols."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.quant import container
from pgolf.quant.container import StoredTensor
from pgolf.quant.packer import stream_name


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
    elements, bytes, bits_per_weight, symbol_bytes, entropy_bytes, over_entropy}; those of tensors have a `tensor`,
    those of classes a number of `tensors`. A stream that several tensors share is split between them in proportion to
    their entropy, so the bytes of all tensors and the header add up to the file. `entropy_bytes` is the order-0
    entropy of the tensor's symbols, `over_entropy` what the coder needed for them over that (below 1: the coder knew
    more); both None for tensors without symbols.

    Raises UserError when the file is damaged.
    """
    header, offset = container.read_header(path)
    tensors, _ = container.read(path, as_stored=True)
    bits = [{part: entropy_bits(array) for part, array in tensor.encoded.parts.items()} for tensor in tensors]
    shares = _shares(tensors, bits, {stream.name: stream.coded for stream in header.streams})
    rows = [_row(*one) for one in zip(tensors, bits, shares, strict=True)]
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


def _row(tensor: StoredTensor, bits: dict[str, float], shares: dict[str, int]) -> dict[str, Any]:
    elements, size = math.prod(tensor.encoded.shape), sum(shares.values())
    return {
        "tensor": tensor.name,
        "role": tensor.role,
        "scheme": tensor.encoded.scheme,
        "elements": elements,
        "bytes": size,
        "symbol_bytes": shares.get("symbols"),
        "entropy_bytes": bits["symbols"] / 8 if "symbols" in bits else None,
    } | _ratios(elements, size, shares.get("symbols"), bits["symbols"] / 8 if "symbols" in bits else None)


def _ratios(elements: int, size: int, symbols: int | None, entropy: float | None) -> dict[str, float | None]:
    return {
        "bits_per_weight": 8 * size / elements if elements else 0.0,
        "over_entropy": symbols / entropy if symbols is not None and entropy else None,
    }


def _classes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows summed by role and scheme."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["role"], row["scheme"]), []).append(row)
    result = []
    for (role, scheme), members in groups.items():
        elements, size = (sum(row[key] for row in members) for key in ("elements", "bytes"))
        symbols, entropy = (_sum(row[key] for row in members) for key in ("symbol_bytes", "entropy_bytes"))
        sums = {"role": role, "scheme": scheme, "tensors": len(members), "elements": elements, "bytes": size}
        sums |= {"symbol_bytes": symbols, "entropy_bytes": entropy}
        result.append(sums | _ratios(elements, size, symbols, entropy))
    return result


def _sum(values: Iterable[float | None]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

"""Expected bytes of an artifact before any training: no weights are looked at."""

import math
from collections.abc import Iterable
from typing import Any

from pgolf.quant.coders import CODERS
from pgolf.quant.rules import Choice
from pgolf.quant.schemes.plain import Half

HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 800, 9
"""Measured size of the packed header: streams and metadata, names and shapes."""


def estimate(choices: Iterable[Choice], shapes: dict[str, tuple[int, ...]], coder: str) -> list[dict[str, Any]]:
    """Expected bytes of every tensor and of the header.

    Symbols are taken as clipped Gaussian noise, coded at the coder's measured overhead; row scales are counted in
    full. Rows: {tensor, role, scheme, bits (per element, with scales), elements, estimated_bytes, estimate: True}.
    """
    overhead = CODERS[coder].overhead
    rows = []
    for choice in choices:
        scheme, shape = choice.scheme or Half(), shapes[choice.name]
        cost, elements = scheme.cost(shape), math.prod(shape)
        bits = float(cost.stored_bits)
        if overhead is not None:
            bits = min(bits, cost.entropy_bits * (overhead if scheme.row_wise else 1.0))
        size = math.ceil(elements * bits / 8) + cost.side_bytes
        rows.append(_row(choice.name, choice.role, scheme.label, elements, size))
    header = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(shapes)
    return [*rows, _row("(header)", "container", "zlib", 0, header)]


def by_class(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum the rows of `estimate` by role and scheme; `tensors` counts them."""
    classes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        classes.setdefault((row["role"], row["scheme"]), []).append(row)
    result = []
    for (role, scheme), members in classes.items():
        elements = sum(row["elements"] for row in members)
        size = sum(row["estimated_bytes"] for row in members)
        row = _row(f"{len(members)} tensors", role, scheme, elements, size)
        result.append({**row, "tensors": len(members)})
    return result


def _row(tensor: str, role: str, scheme: str, elements: int, size: int) -> dict[str, Any]:
    return {
        "tensor": tensor,
        "role": role,
        "scheme": scheme,
        "bits": 8 * size / elements if elements else 0.0,
        "elements": elements,
        "estimated_bytes": size,
        "estimate": True,
    }

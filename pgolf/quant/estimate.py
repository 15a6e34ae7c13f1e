"""Expected bytes of an artifact before any training: no weights are looked at.

The model. A symbol of a row-wise scheme costs the entropy of a Gaussian at the scheme's step, times the overhead that
the coder has on such symbols (measured, `pgolf.quant.coders`). Trained weights are Gaussian once rows and columns are
divided by their spread, but columns keep theirs: their logarithms vary by COLUMN_SPREAD. A mixture of such Gaussians
has less entropy at the same variance (`saved_bits`), and a coder that knows the column pays less still. Row scales cost
SCALE_SHARE of their 16 bits; values that are kept as floats, and the header, cost what they were measured to cost.

Against the published sizes of eight artifacts (PR 1394, 1626, 1667, 1736, 1787 and 1851 with brotli, 1855 with brotli
and with lrzip) the model, none of whose numbers were taken from them, errs by -0.35 to +0.11 %. At mini scale, where
tables of symbols weigh more, errors of several percent are normal.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import numpy as np

from pgolf.quant.coders import CODERS, Coder
from pgolf.quant.rules import Choice
from pgolf.quant.schemes.plain import Half
from pgolf.quant.schemes.scheme import Cost

EXPECTED_ERROR = 0.005
"""Relative, at the published sizes."""
HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 800, 9
"""Measured size of the packed header: streams and metadata, names and shapes."""
SCALE_SHARE = 0.61
"""Coded size of float16 row scales over their size: brotli on byte planes; 0.55 to 0.67 for logarithms that vary by
0.05 to 0.27."""
COLUMN_SPREAD = {
    "*.attn.c_q.*": 0.087,
    "*.attn.c_k.*": 0.202,
    "*.attn.c_v.*": 0.262,
    "*.attn.proj.*": 0.094,
    "*.mlp.fc*": 0.044,
    "*.mlp.proj.*": 0.270,
    "tok_emb.*": 0.089,
}
"""Standard deviation of the logarithms of the columns' spreads, by name: weights of six layers of width 256, trained as
PR 1736 trains. Other names: 0."""
FINE_BITS = 2.5
"""From so many bits a symbol on, what a narrower distribution saves does not depend on the step."""


def estimate(choices: Iterable[Choice], shapes: dict[str, tuple[int, ...]], coder: str) -> list[dict[str, Any]]:
    """Expected bytes of every tensor and of the header by the model of this module.

    Rows: {tensor, role, scheme, bits (per element, with scales), elements, estimated_bytes, estimate: True}.
    """
    chosen = CODERS[coder]
    rows = []
    for choice in choices:
        scheme, shape = choice.scheme or Half(), shapes[choice.name]
        cost, elements = scheme.cost(shape), math.prod(shape)
        bits, side = float(cost.stored_bits), cost.side_bytes
        if chosen.overhead is not None:
            coded = _symbol_bits(cost, choice.name, chosen) if scheme.row_wise else cost.entropy_bits
            bits = min(bits, coded)
            if side and side >= 2 * shape[0]:  # float16, one for each row at least
                side = math.ceil(side * SCALE_SHARE)
        rows.append(_row(choice.name, choice.role, scheme.label, elements, math.ceil(elements * bits / 8) + side))
    header = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(shapes)
    return [*rows, _row("(header)", "container", "zlib", 0, header)]


def by_coder(choices: Iterable[Choice], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Expected bytes of the whole artifact with every coder."""
    chosen = list(choices)
    return {coder: sum(row["estimated_bytes"] for row in estimate(chosen, shapes, coder)) for coder in CODERS}


def _symbol_bits(cost: Cost, name: str, coder: Coder) -> float:
    """Bits a symbol of a row-wise scheme, as `coder` leaves them."""
    assert coder.overhead is not None
    spread = next((spread for pattern, spread in COLUMN_SPREAD.items() if fnmatchcase(name, pattern)), 0.0)
    saved = saved_bits(spread, coder.columns) if cost.entropy_bits >= FINE_BITS else 0.0
    return coder.overhead * (cost.entropy_bits - saved)


@cache
def saved_bits(spread: float, known: float) -> float:
    """Bits a symbol that columns save whose logarithmic spreads are normal with this standard deviation, at fine steps
    and a mean square of one.

    known=0: the entropy of the Gaussian less that of the mixture over all columns. known=1: less the mean entropy of
    the columns, spread^2 / ln 2. Between the two: that share of the way.
    """
    if spread == 0.0:
        return 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    widths = np.exp(spread * nodes - spread**2)[:, None]
    x, step = np.linspace(-12.0, 12.0, 4801, retstep=True)
    shares = weights[:, None] / weights.sum() / (widths * math.sqrt(2 * math.pi))
    density = (shares * np.exp(-0.5 * np.square(x / widths))).sum(axis=0)
    entropy = -float(np.sum(density * np.log2(np.maximum(density, 1e-300)))) * float(step)
    unknown = 0.5 * math.log2(2 * math.pi * math.e) - entropy
    return unknown + known * (spread**2 / math.log(2) - unknown)


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

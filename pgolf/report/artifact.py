"""One picture of an artifact: bytes by class, and for every tensor its bits a weight against the entropy.

Everything is plain numbers, gathered by `pgolf inspect artifact=FILE`; see `pgolf.report.plots` for the rules.
"""

from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, GREY, new_figure, save

SIDE = "#bcd4e6"
BOUNDS = (
    ("entropy_bytes", "order-0 entropy of the symbols", "|"),
    ("adaptive_bytes", "cost with columns learned", "x"),
)


def draw(found: dict[str, Any], path: Path) -> Path:
    """Draw what `pgolf.quant.account.account` gives as PNG."""
    rows = [row for row in found["tensors"] if row["symbol_bytes"] is not None]
    drawing, (classes, tensors) = new_figure(13.0, max(3.6, 1.6 + 0.2 * len(rows)), panels=2)
    _classes(classes, found)
    _tensors(tensors, rows)
    drawing.legend(frameon=False, fontsize=9, ncols=4, loc="outside lower center")
    return save(drawing, path)


def _classes(axes: Any, found: dict[str, Any]) -> None:
    """Bytes of every class: symbols, and what goes with them."""
    names = [f"{row['role']}\n{row['scheme']}" for row in found["classes"]] + ["header"]
    sizes = [row["bytes"] for row in found["classes"]] + [found["header_bytes"]]
    symbols = [row["symbol_bytes"] or 0 for row in found["classes"]] + [0]
    places = range(len(names))[::-1]
    unit, name = (1e6, "megabytes") if found["total_bytes"] >= 1e6 else (1e3, "kilobytes")
    axes.barh(places, [one / unit for one in symbols], color=COLOURS[0], height=0.6, label="coded symbols")
    rest = [(size - one) / unit for size, one in zip(sizes, symbols, strict=True)]
    axes.barh(places, rest, left=[one / unit for one in symbols], color=SIDE, height=0.6, label="steps, floats, header")
    for place, size in zip(places, sizes, strict=True):
        axes.annotate(
            f"{size:,} ({size / found['total_bytes']:.1%})",
            (size / unit, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, names, fontsize=9)
    axes.set_xlim(0, 1.45 * max(sizes) / unit)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{name} (of 1,000)", fontsize=9)
    _title(axes, f"{found['total_bytes']:,} bytes by class, coder {found['coder']}")


def _tensors(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Bits a weight of every tensor with symbols, and the bounds."""
    places = range(len(rows))[::-1]
    bits = [8 * row["symbol_bytes"] / row["symbols"] for row in rows]
    axes.barh(places, bits, color=COLOURS[0], height=0.62, alpha=0.55)
    lowest, highest = min(bits, default=0.0), max(bits, default=1.0)
    for key, label, marker in BOUNDS:
        values = [8 * row[key] / row["symbols"] for row in rows]
        lowest, highest = min([lowest, *values]), max([highest, *values])
        colour = GREY if marker == "|" else COLOURS[1]
        axes.plot(
            values, places, marker, color=colour, markersize=7 if marker == "|" else 4, label=label, clip_on=False
        )
    axes.set_yticks(places, [row["tensor"] for row in rows], fontsize=7.5)
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlim(max(0.0, lowest - 0.15 * (highest - lowest) - 0.1), highest + 0.05 * (highest - lowest) + 0.05)
    axes.grid(False, axis="y")
    axes.set_xlabel("bits a symbol, as coded (bars; the axis does not begin at 0)", fontsize=9)
    _title(axes, "Coded symbols against their entropy, by tensor")


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")

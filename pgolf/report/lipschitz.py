"""The Lipschitz accounting of a run: named terms over the steps (train/diagnostics=lipschitz)."""

from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, is_number, new_figure, save, title
from pgolf.report.learned import place
from pgolf.report.runs import Run

Lines = dict[str, dict[int, float]]
"""Values over steps, by what they are of."""


def lipschitz(run: Run, path: Path) -> Path | None:
    """Largest singular values by kind of matrix (the largest over layers), and by block the largest query gain and the
    product of the named terms; None where nothing was recorded. A term without a formula is left out."""
    events = [event for event in run.events()[0] if event.get("event") == "lipschitz" and is_number(event.get("step"))]
    panels = [
        ("Largest singular value, over layers", _by_kind(events)),
        ("Largest query gain", _by_block(events, "query_gains")),
        ("Product of a block's named terms", _by_block(events, "product")),
    ]
    panels = [(text, lines) for text, lines in panels if lines]
    if not panels:
        return None
    drawing, places = new_figure(5.2 * len(panels), 4.0, len(panels))
    for axes, (text, lines) in zip(places, panels, strict=True):
        for number, (name, points) in enumerate(lines.items()):
            style = "-" if number < len(COLOURS) else "--"
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(list(points), list(points.values()), style, color=colour, marker=".", linewidth=1.2, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=7)
        title(axes, text)
    return save(drawing, path)


def _by_kind(events: list[dict[str, Any]]) -> Lines:
    lines: Lines = {}
    for event in events:
        step = int(event["step"])
        latest: dict[str, float] = {}
        for name, value in _numbers(event, "singular_values").items():
            kind, _ = place(name)
            latest[kind] = max(latest.get(kind, 0.0), value)
        for kind, value in latest.items():
            lines.setdefault(kind.removesuffix(".weight"), {})[step] = value
    return lines


def _by_block(events: list[dict[str, Any]], key: str) -> Lines:
    lines: Lines = {}
    for event in events:
        for block, value in _numbers(event, key).items():
            lines.setdefault(f"block {block}", {})[int(event["step"])] = value
    return lines


def _numbers(event: dict[str, Any], key: str) -> dict[str, float]:
    """The entries of a table that are numbers above zero, as a logarithmic scale can show them."""
    table = event.get(key)
    entries = table.items() if isinstance(table, dict) else ()
    return {name: value for name, value in entries if is_number(value) and value > 0.0}

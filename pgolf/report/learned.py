"""Learned gains, scales, mixes and gates: by kind and layer, over training and where they ended."""

import math
import re
from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, GREY, is_number, new_figure, save
from pgolf.report.runs import Run

IN_A_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
COLUMNS = 4
SHADES = "viridis"

Values = dict[str, list[list[float]]]
"""By parameter, [mean, min, max] of each of its rows."""


def place(name: str) -> tuple[str, int | None]:
    """The kind of a parameter, and the layer that it belongs to (None: to the model)."""
    found = IN_A_BLOCK.fullmatch(name)
    return (found[2], int(found[1])) if found else (name, None)


def means(values: Values) -> dict[str, dict[str, float]]:
    """By kind, the mean of every row, named by its layer, its row, or both where there are several."""
    found: dict[str, dict[str, float]] = {}
    for name, rows in values.items():
        kind, layer = place(name)
        for number, row in enumerate(rows):
            words = [f"layer {layer}"] if layer is not None else []
            words += [f"row {number}"] if len(rows) > 1 else []
            found.setdefault(kind, {})[", ".join(words) or "all"] = row[0]
    return found


def learned_events(run: Run) -> list[dict[str, Any]]:
    """The records of a run in order; one that was made twice, after a kill, counts as it was made last."""
    events = [event for event in run.events()[0] if event.get("event") == "learned" and is_number(event.get("step"))]
    last = {event["step"]: event for event in events if isinstance(event.get("values"), dict)}
    return [last[step] for step in sorted(last)]


def learned(run: Run, path: Path) -> Path | None:
    """Means over steps, a panel each kind and a line each layer and row; marks where the layer plan changed. None for a
    run that recorded none."""
    from matplotlib import colormaps

    events = learned_events(run)
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for event in events:
        for kind, latest in means(event["values"]).items():
            for row, value in latest.items():
                series.setdefault(kind, {}).setdefault(row, []).append((event["step"], value))
    if len(events) < 2 or not series:
        return None
    lines = math.ceil(len(series) / COLUMNS)
    drawing, panels = new_figure(3.4 * min(COLUMNS, len(series)), 2.9 * lines, len(series), COLUMNS)
    marks = [
        event["step"] for event in run.events()[0] if event.get("event") == "turn" and event.get("setting") == "plan"
    ]
    for axes, (kind, rows) in zip(panels, series.items(), strict=True):
        for number, (row, points) in enumerate(rows.items()):
            shade = COLOURS[0] if len(rows) == 1 else colormaps[SHADES](0.92 * number / (len(rows) - 1))
            edge = row if number in (0, len(rows) - 1) else None
            steps, values = [step for step, _ in points], [value for _, value in points]
            axes.plot(steps, values, color=shade, linewidth=1.3, label=edge)
        for step in marks:
            axes.axvline(step, color=GREY, linestyle=":", linewidth=1.4)
        axes.set_title(kind, fontsize=9.5, loc="left", fontweight="bold")
        axes.set_xlabel("step", fontsize=8.5)
        axes.legend(frameon=False, fontsize=7.5)
    return save(drawing, path)

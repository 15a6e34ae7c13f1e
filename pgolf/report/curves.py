"""Training curves of many runs as one SVG whose lines a reader can switch on and off in the page.

Every line is a group with the id `<panel>-run-<number>`, number being the run's place in the table of runs; the page's
script (pgolf.report.script) hides those whose run is not selected.
"""

import io
import re

import numpy as np

from pgolf.report.comparison import Group
from pgolf.report.drawing import COLOURS, new_figure, series
from pgolf.report.runs import Run

POINTS = 150  # a line; more cannot be seen and would be bytes
PANELS = (("step", "step", 1.0), ("seconds", "seconds of training", 1.0), ("tokens", "million tokens", 1e6))


def numbered(groups: list[Group]) -> list[tuple[int, Group, Run]]:
    """Every run with the number by which the page knows it: its place in the table of runs."""
    every = [(group, run) for group in groups for run in group.runs]
    return [(number, group, run) for number, (group, run) in enumerate(every)]


def loss_curves(groups: list[Group]) -> str | None:
    """Smoothed training loss of every run against steps, seconds and tokens, as SVG text; None without any events."""
    drawing, panels = new_figure(13, 4.2, len(PANELS))
    colours = {group.digest: COLOURS[place % len(COLOURS)] for place, group in enumerate(groups)}
    drawn, low, high = False, [], []
    for number, group, run in numbered(groups):
        events = run.events()[0]
        for (key, _, scale), axes in zip(PANELS, panels, strict=True):
            across, loss = thinned(*series(events, "train_loss", key))
            if len(loss):
                drawn = True
                low.append(loss.min())
                high.append(loss[len(loss) // 10])
                (line,) = axes.plot(across / scale, loss, color=colours[group.digest], linewidth=1.4, alpha=0.85)
                line.set_gid(f"{key}-run-{number}")
    if not drawn:
        return None
    margin = 0.05 * (max(high) - min(low)) or 0.1
    for (_, label, _), axes in zip(PANELS, panels, strict=True):
        axes.set_xlabel(label)
        axes.set_ylim(min(low) - margin, max(high) + margin)
    panels[0].set_ylabel("training loss, nats per token")
    for place, group in enumerate(groups[:12]):
        panels[-1].plot([], [], color=COLOURS[place % len(COLOURS)], label=group.label)
    panels[-1].legend(frameon=False, fontsize=8)
    return _svg(drawing)


def thinned(across: list[float], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS means of consecutive values, each at the mean of where they were."""
    x, y = np.asarray(across, np.float64), np.asarray(values, np.float64)
    if len(x) <= POINTS:
        return x, y
    starts = np.linspace(0, len(x), POINTS + 1).astype(int)[:-1]
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts


def _svg(drawing: object) -> str:
    buffer = io.StringIO()
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "pgolf", "svg.fonttype": "none"}):
        drawing.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # a page knows both; and so it names no address
    return re.sub(r'(width|height)="[0-9.]+pt" ?', "", text, count=2)

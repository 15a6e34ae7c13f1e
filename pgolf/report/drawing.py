"""What every figure shares: size and style, the PNG file, reading series from events.

matplotlib is the optional extra `report`; figures are made without pyplot, so nothing global
changes and no display is needed.
"""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import UserError
from pgolf.files import atomic_open

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d5d5d", "#8c564b")
GREY = "#8a8a8a"
DOTS_PER_INCH = 130


def new_figure(width: float, height: float, panels: int = 1, columns: int | None = None) -> tuple[Any, list[Any]]:
    """A matplotlib Figure of this size in inches with `panels` axes in a row, or in rows of `columns`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib, which is not installed: pip install 'pgolf[report]'") from error
    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    wide = min(panels, columns or panels)
    places = list(np.ravel(drawing.subplots(-(-panels // wide), wide)))
    axes = places[:panels]
    for one in places[panels:]:
        one.remove()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, color="#e4e4e4", linewidth=0.7)
        one.set_axisbelow(True)
        one.tick_params(labelsize=9)
    return drawing, axes


def save(drawing: Any, path: Path) -> Path:
    """Write the figure as PNG atomically; the same figure gives the same bytes.

    256 colours: flat drawings lose nothing that one can see, and a page of thirty runs is a third of the size.
    """
    from PIL import Image

    drawn = io.BytesIO()
    drawing.savefig(drawn, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    with atomic_open(path) as file, Image.open(drawn) as pixels:
        pixels.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, format="png", optimize=True)
    return path


def title(axes: Any, text: str) -> None:
    """Head a panel."""
    axes.set_title(text, fontsize=11, loc="left", fontweight="bold")


def series(events: list[dict[str, Any]], key: str, over: str) -> tuple[list[float], list[float]]:
    """Values of `key` over `over` from the step events that have both as finite numbers.

    A step that was done twice, because the run was killed after its checkpoint, counts as it was done last.
    """
    last = {event.get("step"): event for event in events if event.get("event") == "step"}
    pairs = [
        (event[over], event[key]) for event in last.values() if is_number(event.get(key)) and is_number(event.get(over))
    ]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def plural(count: int, word: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""The figures of a report as PNG files. Each function draws one figure and returns its path.

matplotlib is the optional extra `report`; figures are made without pyplot, so nothing global
changes and no display is needed.
"""

import io
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.errors import UserError
from pgolf.files import atomic_open
from pgolf.report import statistics
from pgolf.report.comparison import Group
from pgolf.report.runs import Documents, Run, figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d5d5d", "#8c564b")
GREY = "#8a8a8a"
STAGES = (("pre_quant", "trained"), ("post_quant", "compressed"), ("final", "final"))
BASELINES = (
    ("unigram", "unigram"),
    ("brotli", "brotli"),
    ("xz", "xz"),
    ("xz_primed", "xz, primed"),
)
DOTS_PER_INCH = 130


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    """A matplotlib Figure of this size in inches with `panels` axes in a row."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plots need matplotlib, which is not installed: pip install 'pgolf[report]'") from error
    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = list(np.ravel(drawing.subplots(1, panels)))
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


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold")


def _series(events: list[dict[str, Any]], key: str, over: str) -> tuple[list[float], list[float]]:
    """Values of `key` over `over` from the step events that have both as finite numbers.

    A step that was done twice, because the run was killed after its checkpoint, counts as it was done last.
    """
    last = {event.get("step"): event for event in events if event.get("event") == "step"}
    pairs = [
        (event[over], event[key]) for event in last.values() if _number(event.get(key)) and _number(event.get(over))
    ]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def training_loss(groups: list[Group], path: Path) -> Path | None:
    """Training loss over steps, one colour per group, one line per seed."""
    drawing, (axes,) = new_figure(8.0 if len(groups) <= 5 else 10.5, 4.2)
    drawn = False
    lowest, highest = math.inf, -math.inf
    for index, group in enumerate(groups):
        for order, run in enumerate(group.runs):
            steps, losses = _series(run.events()[0], "train_loss", "step")
            if not steps:
                continue
            drawn = True
            settled = losses[len(losses) // 20 :]
            lowest, highest = min(lowest, *settled), max(highest, *settled)
            axes.plot(
                steps,
                losses,
                color=COLOURS[index % len(COLOURS)],
                linestyle="-" if index < len(COLOURS) else "--",
                linewidth=1.3,
                alpha=1.0 if order == 0 else 0.45,
                label=f"{group.label} ({_plural(len(group.runs), 'run')})" if order == 0 else None,
            )
    if not drawn:
        return None
    room = 0.05 * max(highest - lowest, 1e-3)
    axes.set_ylim(lowest - room, highest + room)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats per token")
    _title(axes, "Training loss (the first 5 % of the steps may lie above the frame)")
    if len(groups) <= 5:
        axes.legend(frameon=False, fontsize=9)
    else:
        drawing.legend(frameon=False, fontsize=8, loc="outside right upper")
    return save(drawing, path)


def schedule(run: Run, path: Path) -> Path | None:
    """Learning-rate scale and recurrence switch, planned and actual, over steps and the clock."""
    events, _ = run.events()
    if not _series(events, "lr_scale", "step")[0]:
        return None
    drawing, (left, right) = new_figure(10.0, 4.2, 2)
    for axes, over, limit in ((left, "step", "max_steps"), (right, "seconds", "max_seconds")):
        budget = planned_budget(run.config, limit)
        if budget is not None:
            places = np.linspace(0.0, 1.0, 201)
            expected = planned_scale(run.config, places)
            if expected is not None:
                axes.plot(places * budget, expected, "--", color=GREY, lw=2.6, label="rate, planned")
            switch = run.config["train"].get("loop_at")
            for moment in filter(_number, switch if isinstance(switch, list) else [switch]):
                at = moment * budget
                text = f"recurrence, planned ({at:.4g})"
                axes.axvline(at, color=GREY, linestyle=":", linewidth=2.4, label=text)
        axes.plot(*_series(events, "lr_scale", over), color=COLOURS[0], lw=1.6, label="rate")
        for order, (event, name) in enumerate(plan_switches(events)):
            if _number(event.get(over)):
                text = f"plan {name} ({event[over]:.4g})"
                axes.axvline(event[over], color=COLOURS[1 + order % 3], lw=1.5, label=text)
        axes.set_ylabel("learning rate / its peak")
        axes.set_ylim(0, 1.06)
        axes.legend(frameon=False, fontsize=8.5, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    left.set_xlabel("step")
    right.set_xlabel("training seconds")
    _title(left, "Schedule over steps")
    _title(right, "Schedule over the clock")
    return save(drawing, path)


def plan_switches(events: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """Step events at which the layer plan changed, with a name such as `plain -> looped`."""
    steps = [event for event in events if event.get("event") == "step" and event.get("plan")]
    return [
        (now, f"{was['plan']} -> {now['plan']}") for was, now in itertools.pairwise(steps) if was["plan"] != now["plan"]
    ]


def planned_budget(config: dict[str, Any], limit: str) -> float | None:
    """The limit `max_steps` or `max_seconds` of the training, None where there is none."""
    train = config.get("train")
    value = train.get(limit) if isinstance(train, dict) else None
    return float(value) if value is not None and _number(value) else None


def planned_scale(config: dict[str, Any], fraction: np.ndarray) -> np.ndarray | None:
    """The warm-down multiplier that the configuration asks for at each part of the budget.

    Worked out here from `train.schedule.{fraction,floor}`, apart from the code that trained, so
    that the plot can show a schedule that did not do what it should. None for other schedules.
    """
    node = config["train"].get("schedule")
    if not isinstance(node, dict) or not str(node.get("_target_")).endswith(".Warmdown"):
        return None
    given = node.get("fraction"), node.get("floor")
    if not all(_number(value) for value in given) or not given[0]:
        return None
    length, floor = float(given[0]), float(given[1] or 0.0)
    falling = np.maximum((1.0 - fraction) / length, floor)
    return np.where(fraction < 1.0 - length, 1.0, falling)


def stage_bpb(run: Run, path: Path) -> Path | None:
    """Bits per byte of every stage beside general compressors, and the stages enlarged."""
    stages = [
        (name, value) for key, name in STAGES if (value := figure(run.summary, f"stages.{key}.val_bpb")) is not None
    ]
    baselines = [
        (name, value) for key, name in BASELINES if (value := figure(run.summary, f"baselines.{key}")) is not None
    ]
    if not stages:
        return None
    drawing, (left, right) = new_figure(10.0, 3.8, 2)
    bars = [*baselines, *stages]
    colours = [GREY] * len(baselines) + [COLOURS[0]] * len(stages)
    names = [name for name, _ in bars][::-1]
    values = [value for _, value in bars][::-1]
    drawn = left.barh(names, values, color=colours[::-1], height=0.66)
    left.bar_label(drawn, [f"{value:.3f}" for value in values], padding=4, fontsize=9)
    left.set_xlim(0, 1.18 * max(values))
    left.grid(False, axis="y")
    left.set_xlabel("bits per byte (lower is better)")
    _title(left, "Against general compressors" if baselines else "Bits per byte")
    places = range(len(stages))
    heights = [value for _, value in stages]
    right.plot(places, heights, color=COLOURS[0], marker="o", linewidth=1.4)
    room = max(max(heights) - min(heights), 1e-4)
    right.set_ylim(min(heights) - 0.5 * room, max(heights) + 0.5 * room)
    for place, height in zip(places, heights, strict=True):
        change = f"\n({height - heights[place - 1]:+.5f})" if place else ""
        fell = place > 0 and height < heights[place - 1]
        right.annotate(
            f"{height:.5f}{change}",
            (place, height),
            textcoords="offset points",
            xytext=(0, -9 if fell else 9),
            ha="center",
            va="top" if fell else "bottom",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    right.set_xticks(list(places), [name for name, _ in stages])
    right.set_xlim(-0.4, len(stages) - 0.6)
    right.set_ylabel("bits per byte")
    _title(right, "The stages enlarged (axis does not start at 0)")
    return save(drawing, path)


def document_bpb(documents: Documents, path: Path) -> Path | None:
    """Bits per byte of each document before and after test-time training, over its length."""
    if "post_quant" not in documents.nats or len(documents.num_bytes) < 2:
        return None
    keep = documents.num_bytes > 0
    size = documents.num_bytes[keep]
    before, after = documents.bpb("post_quant")[keep], documents.bpb("final")[keep]
    drawing, (left, right) = new_figure(10.5, 4.2, 2)
    for values, name, colour in ((before, "before", COLOURS[1]), (after, "after", COLOURS[0])):
        left.scatter(size, values, s=7, color=colour, alpha=0.3, linewidths=0)
        centres, middle = binned(size, values, weights=None)
        left.plot(centres, middle, color=colour, linewidth=2, marker="o", ms=4, label=name)
    left.set_ylabel("bits per byte")
    _title(left, "Documents before and after\ntest-time training (line: median)")
    left.legend(frameon=False, fontsize=9)
    low, high = np.quantile(np.concatenate([before, after]), [0.005, 0.995])
    left.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    gain = before - after
    right.axhline(0, color="#404040", linewidth=1)
    right.scatter(size, gain, s=7, color=COLOURS[2], alpha=0.35, linewidths=0)
    centres, middle = binned(size, gain, weights=size)
    right.plot(centres, middle, color=COLOURS[2], linewidth=2, marker="o", ms=4)
    low, high = np.quantile(gain, [0.005, 0.995])
    room = 0.08 * max(high - low, 1e-4)
    right.set_ylim(min(low, 0.0) - room, max(high, 0.0) + room)
    right.set_ylabel("gain, bits per byte (up is better)")
    share = f"{np.mean(gain > 0):.0%} of {len(gain)} documents improve"
    _title(right, f"Gain: {share}\n(line: mean weighted by bytes)")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("document length, bytes")
    return save(drawing, path)


def binned(
    size: np.ndarray, values: np.ndarray, weights: np.ndarray | None, bins: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Median (or mean by `weights`) of values in up to `bins` groups of equal count by size."""
    order = np.argsort(size, kind="stable")
    chunks = [chunk for chunk in np.array_split(order, min(bins, len(order))) if len(chunk)]
    centres = np.array([np.median(size[chunk]) for chunk in chunks])
    if weights is None:
        return centres, np.array([np.median(values[chunk]) for chunk in chunks])
    means = [np.average(values[chunk], weights=weights[chunk]) for chunk in chunks]
    return centres, np.array(means)


def stage_seconds(run: Run, path: Path) -> Path | None:
    """Wall seconds of every stage as bars, in the order in which the stages ran."""
    recorded = run.summary.get("seconds") or {}
    seconds = {str(name): float(value) for name, value in recorded.items() if _number(value)}
    if not seconds:
        return None
    drawing, (axes,) = new_figure(8.0, 1.3 + 0.38 * len(seconds))
    total = sum(seconds.values())
    names, values = list(seconds)[::-1], list(seconds.values())[::-1]
    drawn = axes.barh(names, values, color=COLOURS[0], height=0.66)
    labels = [f"{value:.1f} s ({value / total:.0%})" for value in values] if total else None
    axes.bar_label(drawn, labels, padding=4, fontsize=9)
    axes.set_xlim(0, 1.25 * max(max(values), 1e-6))
    axes.grid(False, axis="y")
    axes.set_xlabel("seconds")
    _title(axes, f"Seconds per stage ({total:.1f} s in all)")
    return save(drawing, path)


def artifact_bytes(groups: list[Group], path: Path) -> Path | None:
    """Weights and code of the largest artifact of every group against the byte limit."""
    rows = []
    for group in groups:
        sized = [run for run in group.runs if figure(run.summary, "artifact.total_bytes")]
        if sized:
            largest = max(sized, key=lambda run: figure(run.summary, "artifact.total_bytes") or 0)
            rows.append((group.label, largest.summary["artifact"]))
    if not rows:
        return None
    drawing, (axes,) = new_figure(8.5, 1.7 + 0.42 * len(rows))
    names = [name for name, _ in rows][::-1]
    sizes = [size for _, size in rows][::-1]
    weights = np.array([float(size.get("weight_bytes") or 0) for size in sizes]) / 1e6
    code = np.array([float(size.get("code_bytes") or 0) for size in sizes]) / 1e6
    limit = max(float(size.get("limit_bytes") or 0) for size in sizes) / 1e6
    axes.barh(names, weights, color=COLOURS[0], height=0.6, label="weights")
    axes.barh(names, code, left=weights, color=COLOURS[4], height=0.6, label="code")
    widest = max(limit, float(np.max(weights + code)))
    for row, size in enumerate(sizes):
        end = float(weights[row] + code[row])
        place = end if end < 0.25 * limit else max(end, limit)
        axes.annotate(
            _share(size),
            (place, row),
            textcoords="offset points",
            xytext=(7, 0),
            va="center",
            fontsize=9,
        )
    if limit:
        axes.axvline(limit, color=COLOURS[1], linewidth=1.8, label=f"limit {limit:g} MB")
    axes.set_xlim(0, 1.75 * widest)
    axes.grid(False, axis="y")
    axes.set_xlabel("megabytes (1 MB = 1,000,000 bytes), largest seed of each group")
    drawing.legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    _title(axes, "Artifact size against the limit")
    return save(drawing, path)


def _share(size: dict[str, Any]) -> str:
    total, limit = int(size["total_bytes"]), size.get("limit_bytes")
    share = f", {total / limit:.2%} of the limit" if limit else ""
    return f"{total:,} bytes{share}"


def group_bpb(groups: list[Group], path: Path) -> Path:
    """Bits per byte of every group: seeds as dots, the mean as a line, its 95 % t interval."""
    drawing, (axes,) = new_figure(8.5, 1.6 + 0.55 * len(groups))
    every: list[float] = []
    for index, group in enumerate(reversed(groups)):
        colour = COLOURS[(len(groups) - 1 - index) % len(COLOURS)]
        values = list(group.bpb.values())
        sample = statistics.summarise(values)
        every.extend(values)
        if sample.low is not None and sample.high is not None:
            axes.plot([sample.low, sample.high], [index, index], color=colour, linewidth=2.2)
            every.extend([sample.low, sample.high])
        axes.plot([sample.mean] * 2, [index - 0.22, index + 0.22], color=colour, linewidth=2.2)
        axes.plot(values, [index] * len(values), "o", color=colour, ms=6, mec="white", mew=0.8)
        spread = f" ± {sample.std:.5f}" if sample.std is not None else ""
        count = f"n={sample.n}" if sample.n > 1 else "n=1, no interval"
        axes.annotate(
            f"{sample.mean:.5f}{spread} ({count})",
            (sample.mean, index + 0.24),
            textcoords="offset points",
            xytext=(0, 2),
            ha="center",
            fontsize=8.5,
            color="#303030",
        )
    room = max(max(every) - min(every), 1e-4)
    axes.set_xlim(min(every) - 0.25 * room, max(every) + 0.25 * room)
    axes.set_ylim(-0.5, len(groups) - 0.3)
    axes.set_yticks(range(len(groups)), [group.label for group in reversed(groups)])
    axes.grid(False, axis="y")
    axes.set_xlabel("final bits per byte (lower is better)")
    _title(axes, "Groups: seeds (dots), mean (bar), 95 % t interval (line)")
    return save(drawing, path)

"""The figures of a report as PNG files. Each function draws one figure and returns its path."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.report import statistics
from pgolf.report.comparison import Group
from pgolf.report.drawing import COLOURS, GREY, is_number, new_figure, plural, save, series, title
from pgolf.report.runs import Run, figure

STAGES = (("pre_quant", "trained"), ("post_quant", "compressed"), ("final", "final"))
BASELINES = (
    ("unigram", "unigram"),
    ("brotli", "brotli"),
    ("xz", "xz"),
    ("xz_primed", "xz, primed"),
)


def training_loss(groups: list[Group], path: Path) -> Path | None:
    """Training loss over steps, one colour per group, one line per seed."""
    drawing, (axes,) = new_figure(8.0 if len(groups) <= 5 else 10.5, 4.2)
    drawn = False
    lowest, highest = math.inf, -math.inf
    for index, group in enumerate(groups):
        for order, run in enumerate(group.runs):
            steps, losses = series(run.events()[0], "train_loss", "step")
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
                label=f"{group.label} ({plural(len(group.runs), 'run')})" if order == 0 else None,
            )
    if not drawn:
        return None
    room = 0.05 * max(highest - lowest, 1e-3)
    axes.set_ylim(lowest - room, highest + room)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss, nats per token")
    title(axes, "Training loss (the first 5 % of the steps may lie above the frame)")
    if len(groups) <= 5:
        axes.legend(frameon=False, fontsize=9)
    else:
        drawing.legend(frameon=False, fontsize=8, loc="outside right upper")
    return save(drawing, path)


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
    title(left, "Against general compressors" if baselines else "Bits per byte")
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
    title(right, "The stages enlarged (axis does not start at 0)")
    return save(drawing, path)


def stage_seconds(run: Run, path: Path) -> Path | None:
    """Wall seconds of every stage as bars, in the order in which the stages ran."""
    recorded = run.summary.get("seconds") or {}
    seconds = {str(name): float(value) for name, value in recorded.items() if is_number(value)}
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
    title(axes, f"Seconds per stage ({total:.1f} s in all)")
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
    title(axes, "Artifact size against the limit")
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
    title(axes, "Groups: seeds (dots), mean (bar), 95 % t interval (line)")
    return save(drawing, path)

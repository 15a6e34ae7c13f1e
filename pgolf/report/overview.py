"""Pictures that lay groups of runs side by side: through the stages, against the time limits, by document length."""

from pathlib import Path

import numpy as np

from pgolf.errors import UserError
from pgolf.report import scores
from pgolf.report.comparison import Group
from pgolf.report.drawing import COLOURS, new_figure, save, title
from pgolf.report.runs import figure
from pgolf.report.sections import STAGE_NAMES, Table

LIMITS = (
    ("train_strict", "training, with calibration and packing"),
    ("train_as_practised", "training, as practised"),
    ("score_strict", "scoring, with loading"),
    ("score_as_practised", "scoring, as practised"),
)
MOST_GROUPS = 16  # in one picture of lines; more cannot be told apart


def stages(groups: list[Group], path: Path) -> Path | None:
    """Mean bits per byte of every group through the stages, its seeds as dots."""
    drawing, (axes,) = new_figure(9.0 if len(groups) <= 5 else 11.0, 4.2)
    names = [name for _, name in STAGE_NAMES]
    for place, group in enumerate(groups[:MOST_GROUPS]):
        colour = COLOURS[place % len(COLOURS)]
        values = [[figure(run.summary, f"stages.{key}.val_bpb") for key, _ in STAGE_NAMES] for run in group.runs]
        points = np.array([[np.nan if one is None else one for one in row] for row in values])
        known = ~np.isnan(points).all(axis=0)
        if not known.any():
            continue
        means = np.nanmean(points[:, known], axis=0)
        style = "-" if place < len(COLOURS) else "--"
        axes.plot(np.flatnonzero(known), means, style, color=colour, linewidth=1.5, label=group.label)
        for row in points:
            axes.plot(range(len(row)), row, "o", color=colour, ms=4, mec="white", mew=0.5)
    if not axes.lines:
        return None
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.2, len(names) - 0.8)
    axes.set_ylabel("bits per byte")
    title(axes, "Bits per byte through the stages (means; seeds as dots)")
    drawing.legend(frameon=False, fontsize=8, loc="outside right upper")
    return save(drawing, path)


def seconds_table(groups: list[Group]) -> Table | None:
    """The longest training and scoring of every group against the limit of each reading; None for old runs."""
    rows = [
        [group.label, meaning, f"{taken:,.1f}", f"{limit:,.0f}", "yes" if taken <= limit else "NO"]
        for group in groups
        for meaning, taken, limit in _limits(group)
    ]
    headers = ["group", "what is counted", "seconds (longest run)", "limit", "within"]
    return Table("Seconds against the time limits, on the machine of the run", headers, rows, left=2) if rows else None


def seconds(groups: list[Group], path: Path) -> Path | None:
    """Longest training and scoring of every group as bars, strictest reading, against the limits."""
    rows = [(group.label, found) for group in groups if (found := {name: two for name, *two in _limits(group)})]
    if not rows:
        return None
    drawing, panels = new_figure(11.0, 1.7 + 0.4 * len(rows), 2)
    for axes, (_, meaning), colour in zip(panels, (LIMITS[0], LIMITS[2]), (COLOURS[0], COLOURS[2]), strict=True):
        names = [label for label, _ in rows][::-1]
        taken = [found[meaning][0] for _, found in rows][::-1]
        limit = max(found[meaning][1] for _, found in rows)
        bars = axes.barh(names, taken, color=colour, height=0.6)
        axes.bar_label(bars, [f"{value:,.0f} s, {value / limit:.0%}" for value in taken], padding=4, fontsize=8.5)
        axes.axvline(limit, color=COLOURS[1], linewidth=1.8)
        axes.set_xlim(0, 1.25 * max(limit, *taken))
        axes.grid(False, axis="y")
        axes.set_xlabel(f"seconds; the line is the limit of {limit:,.0f} s")
        title(axes, meaning[0].upper() + meaning[1:])
    panels[1].set_yticklabels([])
    return save(drawing, path)


def by_length(groups: list[Group], path: Path) -> Path | None:
    """Every group minus the first by document length, with intervals paired by document; None for one group, or where
    nothing can be paired."""
    try:
        found = scores.differences(groups[: MOST_GROUPS + 1])
    except UserError:
        return None
    if not found:
        return None
    drawing, (axes,) = new_figure(9.0 if len(found) <= 4 else 11.0, 4.2)
    width = 0.8 / len(found)
    lengths = sorted({row.longest for rows in found.values() for row in rows if row.longest})
    for place, (label, rows) in enumerate(found.items()):
        shown = [row for row in rows if row.longest]
        at = np.array([lengths.index(row.longest or 0) for row in shown]) + (place + 0.5) * width - 0.4
        change = np.array([row.change for row in shown])
        below = np.array([row.change - row.low for row in shown])
        above = np.array([row.high - row.change for row in shown])
        colour = COLOURS[(place + 1) % len(COLOURS)]
        marks = {"fmt": "o", "ms": 4, "color": colour, "elinewidth": 1.3}
        axes.errorbar(at, change, yerr=[below, above], label=label, **marks)
    axes.axhline(0.0, color="#303030", linewidth=1.0)
    axes.set_xticks(range(len(lengths)), [f"up to {longest:,}" for longest in lengths])
    axes.set_xlabel("tokens of a document")
    axes.set_ylabel(f"bits per byte minus {groups[0].label}")
    title(axes, "Difference by document length (95 %, paired by document)")
    drawing.legend(frameon=False, fontsize=8, loc="outside right upper")
    return save(drawing, path)


def _limits(group: Group) -> list[tuple[str, float, float]]:
    """(what is counted, seconds of the longest run, limit) of every reading that a group's runs recorded."""
    found = []
    for key, meaning in LIMITS:
        taken = [figure(run.summary, f"limits.{key}.seconds") for run in group.runs]
        limits = [figure(run.summary, f"limits.{key}.limit") for run in group.runs]
        known = [(one, limit) for one, limit in zip(taken, limits, strict=True) if one is not None and limit]
        if known:
            found.append((meaning, *max(known)))
    return found

"""One picture of what a configuration makes: the layer plans, the schedules, and where the bytes go.

Everything is plain numbers, gathered by `pgolf inspect`; see `pgolf.report.plots` for the rules of figures.
"""

import itertools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.report.drawing import COLOURS, GREY, new_figure, save

PALE, LINE, INK, ARC = "#dfe5ea", "#55606a", "#20262b", "#7a8fa3"
HALF = 0.36  # half the width of a visit; a slot is 1 wide
LANE = 0.62  # distance of each lane from the middle
TOPS = {"sequential": 0.4, "parallel": 0.55, "lanes": LANE + 0.31}  # of a visit, by form


@dataclass(frozen=True)
class Visit:
    """One visit of one block. slot: its place in the plan. skip_from: slot whose output is mixed into the input, or
    None; skip_lanes: the lanes that it goes to. writes: for attention and for the MLP the lanes that they are added to
    (form "lanes" alone). attends: whether the block has attention; state_space: or that in its
    place. own_mlp: whether the visit has an MLP of its own. place: that whose gains, scales and mixes it reads; None:
    the block's. adapters: the slot by which it finds its adapters, where repetitions in place share one; None: its own.
    evaluations: of the block in this visit, more than one for a fixed point."""

    slot: int
    block: int
    visit: int
    form: str
    skip_from: int | None
    skip_lanes: tuple[int, ...] = ()
    writes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    attends: bool = True
    state_space: bool = False
    own_mlp: bool = False
    place: int | None = None
    adapters: int | None = None
    evaluations: int = 1


@dataclass(frozen=True)
class Sketch:
    """What the picture shows. plans: visits by name, in the order in which training comes to them. curves: values over
    `moments`, parts of the budget. begins: the moment at which each plan takes over. sizes: bytes by class, `limit`
    what the weights may take."""

    title: str
    plans: dict[str, list[Visit]]
    costs: dict[str, str]
    moments: list[float]
    curves: dict[str, list[float]]
    begins: dict[str, float]
    sizes: dict[str, int]
    limit: int


def architecture(sketch: Sketch, path: Path) -> Path:
    """Draw the sketch as PNG."""
    plans = _distinct(sketch.plans)
    longest = max(len(visits) for visits in plans.values())
    heights = [_height(visits) for visits in plans.values()]
    width = max(10.5, 2.6 + 0.64 * longest)
    drawing, (unused,) = new_figure(width, 0.55 * sum(heights) + 4.6)
    unused.remove()
    grid = drawing.add_gridspec(len(plans) + 2, 2, height_ratios=[*heights, 1.3, 5.0], width_ratios=[1, 1])
    for row, (name, visits) in enumerate(plans.items()):
        axes = drawing.add_subplot(grid[row, :])
        _plan(axes, visits, longest)
        blocks = len({visit.block for visit in visits})
        _title(axes, f"Plan {name}: {len(visits)} visits of {blocks} blocks, {sketch.costs[name.split(' = ')[0]]}")
    _key(drawing.add_subplot(grid[-2, :]), [visit for visits in plans.values() for visit in visits], width)
    _schedules(drawing.add_subplot(grid[-1, 0]), sketch)
    _sizes(drawing.add_subplot(grid[-1, 1]), sketch)
    drawing.suptitle(sketch.title, fontsize=14, fontweight="bold", x=0.01, ha="left", color=INK)
    return save(drawing, path)


def _distinct(plans: dict[str, list[Visit]]) -> dict[str, list[Visit]]:
    """Plans without repetition; those that are the same share a name."""
    kept: dict[str, list[Visit]] = {}
    for name, visits in plans.items():
        same = next((each for each, other in kept.items() if other == visits), None)
        if same is None:
            kept[name] = visits
        else:
            kept = {f"{same} = {name}" if each == same else each: other for each, other in kept.items()}
    return kept


def _height(visits: list[Visit]) -> float:
    low, high = _extent(visits)
    return high - low + 0.6


def _extent(visits: list[Visit]) -> tuple[float, float]:
    """The lowest and the highest point of a plan, in the unit of a visit's width."""
    laned = any(visit.form == "lanes" for visit in visits)
    skips = any(visit.skip_from is not None for visit in visits)
    return (-1.95 if laned else -1.45), max(TOPS[visit.form] for visit in visits) + (1.75 if skips else 0.1)


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", fontweight="bold", color=INK)


def _plan(axes: Any, visits: list[Visit], longest: int) -> None:
    colours, (low, high) = _colours(visits), _extent(visits)
    _stream(axes, visits)
    _box(axes, -1.15, 0.0, "token\nembedding", PALE, INK, width=1.1)
    _box(axes, len(visits) + 0.15, 0.0, "norm,\nlogits", PALE, INK, width=1.1)
    axes.text(-1.15, low + 0.5, "block", ha="center", va="center", fontsize=9, color=LINE)
    for visit in visits:
        _visit(axes, visit, colours.get(visit.block))
        axes.text(visit.slot, low + 0.5, f"{visit.block}", ha="center", va="center", fontsize=10, color=INK)
        if visit.block in colours:
            axes.text(visit.slot, low + 0.14, f"visit {visit.visit}", ha="center", va="center", fontsize=7, color=LINE)
        if visit.skip_from is not None:
            _skip(axes, visit, visits)
    axes.set_xlim(-1.8, max(longest, len(visits)) + 0.8)
    axes.set_ylim(low, high)
    axes.axis("off")


def _key(axes: Any, visits: list[Visit], width: float) -> None:
    """What the signs mean, for the signs that are there."""
    forms = {visit.form for visit in visits}
    words = ["A: attention, M: MLP, from left to right; each block first mixes some of the embedding into its input"]
    if any(visit.visit > 1 for visit in visits):
        words.append("coloured: a block that is visited more than once, with the same weights")
    if "parallel" in forms:
        words.append("A above M: both read the same input, and both are added to it")
    if "lanes" in forms:
        words.append("two lanes: A reads the upper and M the lower one")
        if any(set(lanes) - {source} for visit in visits for source, lanes in enumerate(visit.writes)):
            words.append("thin line: what is added to the other lane too")
    if any(visit.skip_from is not None for visit in visits):
        words.append("arc: the output of an early visit is mixed into the input of a later one (U-Net skip)")
    laned = [visit for visit in visits if visit.form == "lanes" and visit.skip_from is not None]
    if any(len(visit.skip_lanes) == 2 for visit in laned):
        words.append("an arc into lanes goes into both")
    if any(not visit.skip_lanes for visit in laned):
        words.append("dashed arc: the lanes do not take it")
    text = textwrap.fill("; ".join(words) + ".", round(14.5 * width))
    axes.text(0.0, 1.0, text, fontsize=8.5, color=LINE, va="top", transform=axes.transAxes).set_in_layout(False)
    axes.axis("off")


def _colours(visits: list[Visit]) -> dict[int, str]:
    """A colour for each block that is visited more than once."""
    repeated = sorted({visit.block for visit in visits if visit.visit > 1})
    return dict(zip(repeated, itertools.cycle(COLOURS), strict=False))


def _stream(axes: Any, visits: list[Visit]) -> None:
    """The residual stream from left to right, in two lanes where there are two."""
    laned = [visit.slot for visit in visits if visit.form == "lanes"]
    split = laned[0] - 0.5 if laned else len(visits)
    _path(axes, [(-1.0, 0.0), (split, 0.0)])
    if not laned:
        return
    for y in (LANE, -LANE):
        _path(axes, [(split, 0.0), (split + 0.08, y), (len(visits) - 0.55, y), (len(visits) - 0.4, 0.0)])


def _path(axes: Any, points: list[tuple[float, float]], **style: Any) -> None:
    style = {"color": LINE, "linewidth": 1.6, "zorder": 1, "solid_capstyle": "round", **style}
    axes.plot(*zip(*points, strict=True), **style)


def _visit(axes: Any, visit: Visit, colour: str | None) -> None:
    fill, ink = (colour, "white") if colour else (PALE, INK)
    x, quarter = visit.slot, HALF / 2
    if visit.form == "lanes":
        _box(axes, x, LANE, "A", fill, ink, width=HALF * 1.2, height=0.62)
        _box(axes, x, -LANE, "M", fill, ink, width=HALF * 1.2, height=0.62)
        for source, lanes in zip((LANE, -LANE), visit.writes, strict=True):
            for lane in lanes:
                target = (LANE, -LANE)[lane]
                if target != source:
                    _path(axes, [(x + 0.1, source), (x + 0.4, target)], linewidth=0.9, color=GREY, zorder=0)
    elif visit.form == "parallel":
        _box(axes, x, 0.3, "A", fill, ink, width=HALF * 2, height=0.5)
        _box(axes, x, -0.3, "M", fill, ink, width=HALF * 2, height=0.5)
    else:
        _box(axes, x - quarter - 0.01, 0.0, "A", fill, ink, width=HALF - 0.02, height=0.8)
        _box(axes, x + quarter + 0.01, 0.0, "M", fill, ink, width=HALF - 0.02, height=0.8)


def _box(
    axes: Any, x: float, y: float, text: str, fill: str, ink: str, width: float = 0.8, height: float = 0.9
) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((x - width / 2, y - height / 2), width, height, facecolor=fill, edgecolor="white", zorder=2)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, zorder=3)


def _skip(axes: Any, visit: Visit, visits: list[Visit]) -> None:
    """An arc over the visits between; longer ones are higher."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    assert visit.skip_from is not None
    start, end = visit.skip_from, visit.slot
    foot, head = TOPS[visits[start].form], TOPS[visit.form]
    top = max(foot, head) + 0.35 + 1.9 * (end - start) / len(visits)
    points = [(start, foot), (start, top), (end, top), (end, head)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    dashes = "--" if visit.form == "lanes" and not visit.skip_lanes else "-"
    style: dict[str, Any] = {"color": ARC, "linewidth": 1.1, "linestyle": dashes, "zorder": 1}
    axes.add_patch(FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=9, **style))


def _schedules(axes: Any, sketch: Sketch) -> None:
    for (name, values), colour in zip(sketch.curves.items(), COLOURS, strict=False):
        axes.plot(sketch.moments, values, label=name, color=colour, linewidth=1.8)
    ends = [*list(sketch.begins.values())[1:], 1.0]
    for index, ((name, begin), end) in enumerate(zip(sketch.begins.items(), ends, strict=True)):
        if end > begin:
            axes.axvspan(begin, end, color=GREY, alpha=0.05 + 0.1 * index, linewidth=0)
            axes.text((begin + end) / 2, 1.07, name, ha="center", fontsize=9, color=LINE)
    axes.set(xlim=(0, 1), ylim=(0, 1.15))
    axes.set_xlabel("part of the training budget", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    _title(axes, "Schedules and plans")


def _sizes(axes: Any, sketch: Sketch) -> None:
    total = sum(sketch.sizes.values())
    bars = {"all": total, **dict(reversed(sketch.sizes.items()))}
    colours = [LINE, *[COLOURS[0]] * len(sketch.sizes)]
    axes.barh(range(len(bars)), [value / 1e6 for value in bars.values()], color=colours, height=0.6)
    for row, value in enumerate(bars.values()):
        axes.annotate(
            f"{value:,}",
            (value / 1e6, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )
    near = total > sketch.limit / 3  # a limit far away would leave no room for the bars
    if near:
        axes.axvline(sketch.limit / 1e6, color=COLOURS[1], linewidth=1.5)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
    axes.set_xlim(0, 1.3 * max(total, sketch.limit if near else 0) / 1e6)
    axes.set_xlabel(f"expected megabytes (1 MB = 1,000,000 bytes){'; line: the limit' if near else ''}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _title(axes, f"Bytes of the weights: {total / sketch.limit:.1%} of the limit")

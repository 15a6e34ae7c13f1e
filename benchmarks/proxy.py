"""Does a small scale rank the published presets as their authors' runs did? Reads the runs of a sweep and says.

    pgolf --multirun seed=42,0,1234 experiment=naive,pr1736,... scale=mini data=pydocs train.max_steps=250
    python benchmarks/proxy.py multirun

Writes benchmarks/results/proxy.json, the register of the runs beside it, docs/proxy.png, and the tables between the
marks in docs/proxy.md. Groups are presets: runs that differ by their seed alone. Intervals are 95 %.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from marked import fill
from scipy import stats

from pgolf.files import write_json
from pgolf.register import FILE as REGISTER
from pgolf.report.catalogue import Catalogue, Record, load_catalogue
from pgolf.report.comparison import Group, make_groups
from pgolf.report.drawing import COLOURS, new_figure, save, title
from pgolf.report.runs import find_runs
from pgolf.report.statistics import bootstrap_documents, paired, summarise
from pgolf.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCUMENT, PICTURE = ROOT / "benchmarks" / "results", ROOT / "docs" / "proxy.md", ROOT / "docs" / "proxy.png"
REPLICATES = 10_000
OLD = ("naive", "lora_ttt")


@dataclass(frozen=True)
class Point:
    """One preset: published mean, what was measured here over seeds (std: sample standard deviation), and how its
    batches are drawn."""

    preset: str
    loader: str
    published: float
    trained: float
    final: float
    std: float
    seeds: int


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho between published and measured bits per byte over n presets; low, high: bootstrap over presets and
    seeds; p: of as large a rho by chance, one-sided, by permutation."""

    over: str
    n: int
    rho: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Step:
    """A preset against its nearest ancestor in the study, bits per byte, negative is better. seeds_*: t interval over
    seeds, which share initial values and data order; documents_*: bootstrap over documents. answer: whether the sign
    here is the published one."""

    preset: str
    ancestor: str
    published: float
    here: float
    seeds_low: float
    seeds_high: float
    documents_low: float
    documents_high: float
    answer: str


def main(arguments: list[str] | None = None) -> int:
    """Write everything; the exit status is 1 when there are too few presets for a correlation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="folder of the sweep")
    directory = parser.parse_args(arguments).directory
    found, catalogue = find_runs([directory]), load_catalogue()
    known = {record.id: record for record in catalogue.records}
    groups = {group.label: group for group in make_groups(found.groups()) if group.label in known}
    for problem in found.problems:
        print(f"not counted: {problem.directory}: {problem.reason}")
    if len(groups) < 4:
        print(f"{directory} holds {len(groups)} presets with a published figure: a correlation needs four.")
        return 1
    points = [point(group, known[name]) for name, group in groups.items()]
    points.sort(key=lambda one: -one.published)
    correlations = correlate(groups, known)
    taken = list(steps(points, groups, catalogue))
    write_json(
        RESULTS / "proxy.json",
        {
            "points": [asdict(one) for one in points],
            "correlations": [asdict(one) for one in correlations],
            "steps": [asdict(one) for one in taken],
            "environment": environment(next(iter(groups.values()))),
        },
    )
    shutil.copyfile(directory / REGISTER, RESULTS / "proxy-started.jsonl")
    draw(points, correlations)
    text = tables(points, correlations, taken)
    fill(DOCUMENT, "benchmarks/proxy.py", text)
    print(text)
    return 0


def point(group: Group, record: Record) -> Point:
    """The figures of one preset."""
    final = summarise(list(group.bpb.values()))
    trained = float(np.mean([run.summary["stages"]["pre_quant"]["val_bpb"] for run in group.runs]))
    return Point(record.id, loader_of(group), record.mean, trained, final.mean, final.std or float("nan"), final.n)


def loader_of(group: Group) -> str:
    """How a group draws its batches."""
    return str(group.runs[0].config["train"]["loader"]["_target_"]).rpartition(".")[2].removesuffix("Loader")


def correlate(groups: dict[str, Group], known: dict[str, Record]) -> list[Correlation]:
    """Over all presets, over those of the frontier family, and with the score of the weights as trained."""

    def final(group: Group) -> list[float]:
        return list(group.bpb.values())

    def trained(group: Group) -> list[float]:
        return [run.summary["stages"]["pre_quant"]["val_bpb"] for run in group.runs]

    frontier = {name: group for name, group in groups.items() if name not in OLD}
    packing = {name: group for name, group in groups.items() if loader_of(group) == "DocumentPacking"}
    chosen: list[tuple[str, dict[str, Group], Callable[[Group], list[float]]]] = [
        ("all presets, final score", groups, final),
        ("all presets, weights as trained", groups, trained),
        ("without the baselines of 2026-03-17, final score", frontier, final),
        ("without the baselines of 2026-03-17, weights as trained", frontier, trained),
        ("those alone that pack documents, final score", packing, final),
        ("those alone that pack documents, weights as trained", packing, trained),
    ]
    return [
        spearman(over, [known[name].mean for name in some], [values(group) for group in some.values()])
        for over, some, values in chosen
    ]


def spearman(over: str, published: Sequence[float], measured: Sequence[Sequence[float]]) -> Correlation:
    """Rho of the means, its interval and its p value."""
    random = np.random.default_rng(0)
    theirs, ours = np.array(published), np.array([np.mean(values) for values in measured])
    rho, count = _rho(theirs, ours), len(theirs)
    drawn = []
    for _ in range(REPLICATES):
        some = random.integers(count, size=count)
        means = np.array([np.mean(random.choice(measured[one], len(measured[one]))) for one in some])
        if len(set(theirs[some])) > 2:
            drawn.append(_rho(theirs[some], means))
    chance = np.array([_rho(theirs, random.permutation(ours)) for _ in range(REPLICATES)])
    low, high = np.quantile(drawn, [0.025, 0.975])
    p = (1 + np.sum(chance >= rho)) / (1 + REPLICATES)
    return Correlation(over, count, rho, float(low), float(high), float(p))


def _rho(left: np.ndarray, right: np.ndarray) -> float:
    return float(stats.spearmanr(left, right).statistic)


def steps(points: list[Point], groups: dict[str, Group], catalogue: Catalogue) -> list[Step]:
    """Every preset against the nearest of its ancestors that is in the study."""
    published = {one.preset: one.published for one in points}
    found = []
    for one in points:
        lineage = catalogue.lineage(catalogue.find(one.preset))  # from the oldest to the preset itself
        ancestors = [name for name in lineage[:-1] if name in groups]
        if not ancestors:
            continue
        nearest = ancestors[-1]
        base, candidate = groups[nearest], groups[one.preset]
        test = paired(base.bpb, candidate.bpb)
        nats = [np.mean([run.documents().nats["final"] for run in side.runs], axis=0) for side in (base, candidate)]
        documents = bootstrap_documents(nats[0], nats[1], base.runs[0].documents().num_bytes, REPLICATES)
        theirs, here = one.published - published[nearest], -test.gain
        low, high = -(test.high or np.nan), -(test.low or np.nan)
        answer = "undecided: the interval over seeds holds 0"
        if low > 0 or high < 0:
            answer = "same sign" if here * theirs > 0 else "SIGN CHANGES"
        found.append(Step(one.preset, nearest, theirs, here, low, high, -documents.high, -documents.low, answer))
    return found


def environment(group: Group) -> dict[str, str]:
    """What the runs ran on."""
    run = group.runs[0]
    keys = ("torch", "python", "device", "code_hash", "data_digest")
    return {key: str(run.identity.get(key, "")) for key in keys}


def draw(points: list[Point], correlations: list[Correlation]) -> None:
    """Published against measured, seeds as bars, colours by loader; one panel for all and one for the frontier."""
    drawing, panels = new_figure(13.0, 5.6, 2)
    frontier = [one for one in points if one.preset not in OLD]
    colours = dict(zip(dict.fromkeys(one.loader for one in points), COLOURS, strict=False))
    for axes, some, found in zip(panels, (points, frontier), (correlations[0], correlations[2]), strict=True):
        for place, one in enumerate(sorted(some, key=lambda one: one.published)):
            at, colour = (one.published, one.final), colours[one.loader]
            axes.errorbar(*at, yerr=one.std, fmt="o", color=colour, ms=5, elinewidth=1.2)
            if some is frontier or one.preset in OLD:
                offset = (6, 9 if place % 2 else -14)
                axes.annotate(one.preset, at, textcoords="offset points", xytext=offset, fontsize=8, color="#303030")
        axes.set_xlabel("published bits per byte (FineWeb, 8 H100s, 600 s)")
        axes.set_ylabel("bits per byte here")
        what = "All presets" if some is points else "Without those of 2026-03-17"
        title(axes, f"{what}: rho {found.rho:+.2f}, 95 % {found.low:+.2f} .. {found.high:+.2f}, n={found.n}")
    for loader, colour in colours.items():
        panels[0].plot([], [], "o", color=colour, label=f"batches by {loader}")
    panels[0].legend(frameon=False, fontsize=9, loc="lower right")
    save(drawing, PICTURE)


def tables(points: list[Point], correlations: list[Correlation], taken: list[Step]) -> str:
    """The three tables as Markdown."""
    first = markdown_table(
        ["preset", "batches by", "published", "here, as trained", "here, final", "std", "seeds"],
        [
            [
                one.preset,
                one.loader,
                *[f"{value:.5f}" for value in (one.published, one.trained, one.final, one.std)],
                str(one.seeds),
            ]
            for one in points
        ],
        left=2,
    )
    second = markdown_table(
        ["Spearman over", "n", "rho", "95 % interval", "p by chance"],
        [
            [one.over, str(one.n), f"{one.rho:+.3f}", f"{one.low:+.2f} .. {one.high:+.2f}", f"{one.p:.4f}"]
            for one in correlations
        ],
    )
    third = markdown_table(
        ["preset", "against", "published", "here", "95 % over seeds", "95 % over documents", "verdict"],
        [
            [
                one.preset,
                one.ancestor,
                f"{one.published:+.5f}",
                f"{one.here:+.5f}",
                f"{one.seeds_low:+.4f} .. {one.seeds_high:+.4f}",
                f"{one.documents_low:+.4f} .. {one.documents_high:+.4f}",
                one.answer,
            ]
            for one in taken
        ],
        left=2,
    )
    return "\n\n".join((first, second, third))


if __name__ == "__main__":
    sys.exit(main())

"""The table, the picture and the figures of benchmarks/ablations.py."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ablations import BASE, BASE_SEEDS
from marked import fill
from scipy import stats

from pgolf.errors import UserError
from pgolf.files import read_json, write_bytes, write_json
from pgolf.register import FILE as REGISTER
from pgolf.report.drawing import COLOURS, GREY, new_figure, save, title
from pgolf.report.runs import Run, figure, read_run
from pgolf.report.statistics import bootstrap_documents, paired
from pgolf.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCUMENT, PICTURE = (
    ROOT / "benchmarks" / "results",
    ROOT / "docs" / "ablations.md",
    ROOT / "docs" / "ablations.png",
)
LEVEL = 0.05
SEEDS = 3  # that an option needs to be shown
MOST_ROWS = 64  # of a panel
TICKS = (-0.1, -0.01, 0.0, 0.01, 0.1)


@dataclass
class Effect:
    """One option minus what it is compared with, bits per byte, negative is better.

    change: final score, mean of the shared seeds; low, high: t interval over these seeds; documents_*: bootstrap over
    documents of the seeds' mean; trained: change of the weights before quantisation (None where they are the same);
    p: two-sided, of so large a change by the noise of seeds pooled over all options; verdict: after Holm's correction.
    seconds: of training, of compressing or of scoring, whichever was done again, side by side in one process,
    as a ratio (None: not measured); bytes: of the artifact, as a difference; code: hash of the code that was run, the
    base's too.
    """

    name: str
    kind: str
    against: str
    change: float
    low: float
    high: float
    documents_low: float
    documents_high: float
    trained: float | None
    seconds: float | None
    bytes: int
    parameters: int
    seeds: int
    gains: list[float]
    code: str
    p: float = 1.0
    verdict: str = ""


def write(studies: Sequence[Any], folder: Path, seconds: Path) -> int:
    """Write docs/ablations.md, docs/ablations.png and benchmarks/results/ablations.json; gives the exit status."""
    found, failed = runs_of(studies, folder)
    if "base" not in found:
        raise UserError(f"{folder} holds no finished run of the base: python benchmarks/ablations.py run --only base")
    base = found["base"]
    if missing := [seed for seed in BASE_SEEDS if seed not in base]:
        raise UserError(f"{folder}: the base has not ended with seed {missing[0]}: ablations.py run --only base")
    timed = read_json(seconds) if seconds.is_file() else {}
    timed = {name: one for name, one in timed.items() if one["agree"]}
    effects = [
        effect(study, found[study.against], found[study.name])
        for study in studies
        if study.name != "base" and len(found.get(study.name, {}).keys() & found.get(study.against, {}).keys()) >= SEEDS
    ]
    effects += earlier(base, {study.name for study in studies} - {one.name for one in effects})
    if not effects:
        raise UserError(f"{folder} holds no finished option beside the base: python benchmarks/ablations.py run")
    for one in effects:
        one.seconds = timed.get(one.name, {}).get("ratio")
    noise = judge(effects)
    shown = {one.name for one in effects} | {"base"}
    missing = [study.name for study in studies if study.name not in shown]
    twice = [max(one["base"]) / min(one["base"]) - 1 for one in timed.values()]
    noise_of_seconds = float(np.median(twice)) if twice else None
    started = register(folder)
    facts = facts_of(base, effects, noise, started.count(b'"state": "running"'), failed, missing, noise_of_seconds)
    write_json(
        RESULTS / "ablations.json",
        {"facts": facts, "options": {one.name: {"change_bpb": one.change, **asdict(one)} for one in effects}},
    )
    write_bytes(RESULTS / "ablations-started.jsonl", started)
    draw(effects, noise)
    text = "\n\n".join([summary(facts), *[table(kind, effects) for kind in dict.fromkeys(one.kind for one in effects)]])
    fill(DOCUMENT, "benchmarks/ablations.py", text)
    print(text)
    return 0


def earlier(base: dict[int, Run], wanted: set[str]) -> list[Effect]:
    """What an earlier sweep found out about the options `wanted`, whose runs are no longer here.

    It holds for as long as the base of today scores the same as the base of then, to the last bit, over all of its
    seeds; otherwise nothing of it is kept, which is said.
    """
    path = RESULTS / "ablations.json"
    if not path.is_file():
        return []
    before = read_json(path)
    facts, rows = before["facts"], [row for name, row in before["options"].items() if name in wanted]
    if facts["base_scores"] != scores(base):
        print(f"{path}: {len(rows)} options are left out, for the base scored otherwise then: run them again")
        return []
    if rows:
        print(f"{len(rows)} options are those of an earlier sweep: whoever changed their own code runs them again")
    for row in rows:
        del row["change_bpb"]
    return [Effect(**row) for row in rows]


def scores(base: dict[int, Run]) -> dict[str, float]:
    """Seed -> final bits per byte, as JSON gives it back."""
    return {str(seed): base[seed].val_bpb for seed in sorted(base)}


def register(folder: Path) -> bytes:
    """Lines of all that was ever started: those of earlier sweeps, then those of `folder` that are new."""
    path = RESULTS / "ablations-started.jsonl"
    before = path.read_bytes().splitlines() if path.is_file() else []
    known = set(before)
    lines = [*before, *(line for line in (folder / REGISTER).read_bytes().splitlines() if line not in known)]
    return b"".join(line + b"\n" for line in lines)


def runs_of(studies: Sequence[Any], folder: Path) -> tuple[dict[str, dict[int, Run]], list[str]]:
    """Study -> seed -> its finished run, by what each was told beside the base; and what was not finished."""
    wanted = {frozenset(map(str.lower, (*study.needs, *study.overrides))): study.name for study in studies}
    found: dict[str, dict[int, Run]] = {}
    failed = []
    for status in sorted(folder.glob("**/status.json")):
        try:
            run = read_run(status.parent)
        except UserError as error:
            failed.append(f"{status.parent.relative_to(folder)}: {error}")
            continue
        if (name := wanted.get(told_to(status.parent))) is not None:
            found.setdefault(name, {})[run.seed] = run
    return found, failed


def told_to(directory: Path) -> frozenset[str]:
    """The overrides of a run beside its seed, its name and those of every run here; a sweep writes False for false."""
    words = yaml.safe_load((directory / ".hydra" / "overrides.yaml").read_text("utf-8")) or []
    own = (word for word in words if word.partition("=")[0] not in ("seed", "name") and word not in BASE)
    return frozenset(map(str.lower, own))


def effect(study: Any, base: dict[int, Run], candidate: dict[int, Run]) -> Effect:
    """What a study changed, over the seeds that both sides have."""
    seeds = sorted(base.keys() & candidate.keys())
    sides = [[side[seed] for seed in seeds] for side in (base, candidate)]
    finals = [{seed: side[seed].val_bpb for seed in seeds} for side in (base, candidate)]
    test = paired(*finals)
    nats = [np.mean([run.documents().nats["final"] for run in side], axis=0) for side in sides]
    documents = bootstrap_documents(nats[0], nats[1], sides[0][0].documents().num_bytes, 5000)
    trained = [np.mean([figure(run.summary, "stages.pre_quant.val_bpb") or math.nan for run in side]) for side in sides]
    size, parameters = (
        [max(int(figure(run.summary, key) or 0) for run in side) for side in sides]
        for key in ("artifact.total_bytes", "model.parameters")
    )
    return Effect(
        name=study.name,
        kind=study.kind,
        against=study.against,
        change=-test.gain,
        low=-test.high if test.high is not None else math.nan,
        high=-test.low if test.low is not None else math.nan,
        documents_low=-documents.high,
        documents_high=-documents.low,
        trained=float(trained[1] - trained[0]) if study.kind == "trained" else None,
        seconds=None,
        bytes=size[1] - size[0],
        parameters=parameters[1] - parameters[0],
        seeds=len(seeds),
        gains=[finals[1][seed] - finals[0][seed] for seed in seeds],
        code=code_of(study.name, [run for side in sides for run in side]),
    )


def code_of(name: str, runs: Sequence[Run]) -> str:
    """The hash of the code of all `runs`. UserError where they differ: bytes count the code."""
    found = {str(run.identity.get("code_hash")) for run in runs}
    if len(found) > 1:
        raise UserError(f"{name} and its base were run by different code: ablations.py run both in another folder")
    return found.pop()


def judge(effects: list[Effect]) -> dict[str, float]:
    """Fill p and verdict; gives, by kind, the standard deviation of one seed's difference, pooled over its options.

    The median of the variances, scaled to be that of a normal sample, so that a few options that train unevenly do not
    set the noise of all.
    """
    noise = {}
    for kind in dict.fromkeys(one.kind for one in effects):
        some = [one for one in effects if one.kind == kind and one.seeds > 1]
        variances = [float(np.var(one.gains, ddof=1)) for one in some]
        expected = stats.chi2.median(some[0].seeds - 1) / (some[0].seeds - 1)
        noise[kind] = math.sqrt(float(np.median(variances)) / expected)
        freedom = sum(one.seeds - 1 for one in some)
        for one in some:
            own = max(noise[kind], float(np.std(one.gains, ddof=1)))  # never less than what its own seeds show
            one.p = float(2 * stats.t.sf(abs(one.change) / (own / math.sqrt(one.seeds)), freedom))
    still = True
    for place, one in enumerate(sorted(effects, key=lambda one: one.p)):
        still = still and one.p <= LEVEL / (len(effects) - place)
        one.verdict = ("better" if one.change < 0 else "worse") if still else "within noise"
    return noise


def facts_of(
    base: dict[int, Run],
    effects: list[Effect],
    noise: dict[str, float],
    started: int,
    failed: list[str],
    missing: list[str],
    noise_of_seconds: float | None,
) -> dict[str, Any]:
    """What a reader must know to read the table."""
    values = list(scores(base).values())
    first = next(iter(base.values()))
    return {
        "base_bpb": float(np.mean(values)),
        "base_std": float(np.std(values, ddof=1)),
        "base_scores": scores(base),
        "noise_of_a_difference": noise,
        "detectable_with_three_seeds": {kind: 2.8 * one / math.sqrt(3) for kind, one in noise.items()},
        "seconds_noise": noise_of_seconds,
        "options": len(effects),
        "started": started,
        "unfinished": failed,
        "not_run": missing,
        "torch": first.identity.get("torch"),
        "versions_of_the_code": len({one.code for one in effects}),
        "seconds_of_a_run": min(sum(run.summary["seconds"].values()) for run in base.values()),
    }


def summary(facts: dict[str, Any]) -> str:
    """The noise floor in words."""
    seeds = ", ".join(map(str, facts["base_scores"]))
    lines = [
        f"Base: {facts['base_bpb']:.4f} bits per byte, standard deviation {facts['base_std']:.4f} over the seeds "
        f"{seeds}; "
        f"{facts['seconds_of_a_run']:.0f} s the quickest run on one core, torch {facts['torch']}.",
        "Noise floor, by what has to be done again for an option: "
        + "; ".join(
            f"{kind}: a difference of one seed has a standard deviation of {one:.4f}, so with three seeds a true "
            f"effect of {facts['detectable_with_three_seeds'][kind]:.4f} is found four times "
            "out of five (one option alone)"
            for kind, one in facts["noise_of_a_difference"].items()
        )
        + ".",
        f"{facts['options']} options, {facts['started']} runs started (register: "
        "benchmarks/results/ablations-started.jsonl), on "
        f"{facts['versions_of_the_code']} version(s) of the code with the same scores of the base to the last bit; an "
        "option's bytes are beside a base of its own version. An option whose code changed since has to be run again.",
    ]
    if facts["seconds_noise"] is not None:
        lines.append(
            f"Seconds: the same work of the base, measured twice around an option's, differs by "
            f"{facts['seconds_noise']:.0%} (median) and by a tenth at most; a ratio as near to 1 as that says nothing. "
            "None is given where the two measurements differed by more, or there is none."
        )
    if facts["unfinished"]:
        lines.append("Started and not finished: " + "; ".join(facts["unfinished"]) + ".")
    if facts["not_run"]:
        lines.append(
            f"Listed, and not run with {SEEDS} seeds: " + ", ".join(f"`{name}`" for name in facts["not_run"]) + "."
        )
    return "\n".join(f"- {line}" for line in lines)


def table(kind: str, effects: list[Effect]) -> str:
    """One kind's options, best first."""
    rows = [
        [
            f"`{one.name}`" + ("" if one.against == "base" else f" against `{one.against}`"),
            f"{one.change:+.4f}",
            f"{one.low:+.4f} .. {one.high:+.4f}",
            f"{one.documents_low:+.4f} .. {one.documents_high:+.4f}",
            "" if one.trained is None else f"{one.trained:+.4f}",
            one.verdict,
            "" if one.seconds is None else f"{one.seconds:.2f}",
            f"{one.bytes:+,}",
            f"{one.parameters:+,}",
        ]
        for one in sorted((one for one in effects if one.kind == kind), key=lambda one: one.change)
    ]
    headers = ["option", "change", "95 % over seeds", "95 % over documents", "before quantisation", "verdict"]
    return f"### {kind.capitalize()}\n\n" + markdown_table([*headers, "seconds", "bytes", "parameters"], rows)


def draw(effects: list[Effect], noise: dict[str, float]) -> None:
    """Every option with its seeds, a panel for a kind and two for one with many; the band is what noise alone would
    do. All rows are as high."""
    panels = []
    for kind in noise:
        some = sorted((one for one in effects if one.kind == kind), key=lambda one: one.change)
        count = -(-len(some) // MOST_ROWS)
        size = -(-len(some) // count)
        panels += [(kind, some[first : first + size], first > 0) for first in range(0, len(some), size)]
    tallest = max(len(some) for _, some, _ in panels)
    drawing, places = new_figure(5.2 * len(panels), 1.4 + 0.2 * tallest, len(panels))
    for axes, (kind, some, goes_on) in zip(places, panels, strict=True):
        band = 1.96 * noise[kind] / math.sqrt(3)
        axes.axvspan(-band, band, color=GREY, alpha=0.18)
        for row, one in enumerate(some):
            colour = {"better": COLOURS[2], "worse": COLOURS[1]}.get(one.verdict, GREY)
            axes.plot(one.gains, [row] * len(one.gains), "o", color=colour, ms=3, alpha=0.5)
            axes.plot([one.change], [row], "D", color=colour, ms=4.5)
        axes.axvline(0.0, color="#303030", linewidth=0.8)
        axes.set_yticks(range(len(some)), [one.name for one in some], fontsize=7.5)
        axes.set_ylim(tallest - 0.3, -0.7)  # best first
        axes.set_xscale("symlog", linthresh=max(band, 1e-4), linscale=0.6)
        axes.set_xlim(-0.6, 0.6)
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS], fontsize=7.5)
        axes.minorticks_off()
        axes.set_xlabel(
            "change of bits per byte, negative is better;\ndots are seeds, the band is noise (95 %)", fontsize=8
        )
        title(axes, kind.capitalize() + ", continued" * goes_on)
    save(drawing, PICTURE)

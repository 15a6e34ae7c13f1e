"""How long a job will take: what finished runs of its recipe took, else what its budget says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.app.compose import Job
from pgolf.digest import digest, group_digest
from pgolf.errors import UserError
from pgolf.files import read_json
from pgolf.report.tables import text_table

THE_MACHINE = "price"
"""The name of a machine that was given a price and no name."""


@dataclass(frozen=True)
class Estimate:
    """seconds: None when nothing tells; source: where they come from; finished: its result is there already."""

    seconds: float | None
    source: str
    finished: bool


def estimates(jobs: list[Job], given: float | None = None) -> list[Estimate]:
    """An estimate for every job. given: the user's own figure for what no finished run tells."""
    folders = {job.directory.parent for job in jobs} | {Path(job.config["paths"]["runs"]) for job in jobs}
    known = _finished(folders)
    return [_estimate(job, known, given) for job in jobs]


@dataclass(frozen=True)
class Share:
    """What the unfinished jobs of one configuration come to. hours: None when nothing tells how long one takes."""

    name: str
    runs: int
    hours: float | None


def by_configuration(jobs: list[Job], found: list[Estimate]) -> list[Share]:
    """A share for every configuration of a sweep, seeds apart, in order."""
    runs: dict[str, list[Estimate]] = {}
    names: dict[str, str] = {}
    for job, one in zip(jobs, found, strict=True):
        key = group_digest(job.config)
        names.setdefault(key, configuration_name(job))
        runs.setdefault(key, []).extend([] if one.finished else [one])
    return [Share(names[key], len(waiting), _hours(waiting)) for key, waiting in runs.items()]


def configuration_name(job: Job) -> str:
    """The overrides of a job without its seed."""
    return " ".join(one for one in job.overrides if not one.startswith("seed=")) or "defaults"


def render(shares: list[Share], prices: Mapping[str, float]) -> str:
    """Configurations with their runs, hours and, for every machine, what they cost; and the sum."""
    known = [share.hours for share in shares if share.hours is not None]
    total = Share("all", sum(share.runs for share in shares), sum(known) if len(known) == len(shares) else None)
    rows = [
        [
            share.name,
            str(share.runs),
            "unknown" if share.hours is None else f"{share.hours:.2f}",
            *["unknown" if share.hours is None else f"{share.hours * price:,.2f}" for price in prices.values()],
        ]
        for share in [*shares, total]
    ]
    return text_table(["configuration", "runs", "hours", *prices], rows)


def _hours(waiting: list[Estimate]) -> float | None:
    known = [one.seconds for one in waiting if one.seconds is not None]
    return sum(known) / 3600 if len(known) == len(waiting) else None


def summed(found: list[Estimate], prices: Mapping[str, float] | None = None) -> list[str]:
    """Lines that say what the unfinished jobs cost together. prices: of one hour, by machine."""
    waiting = [one for one in found if not one.finished]
    total = sum(one.seconds or 0.0 for one in waiting)
    unknown = sum(one.seconds is None for one in waiting)
    at_least = "at least " if unknown else ""
    lines = [f"time: {at_least}{duration(total)}, one job after another" if total or not unknown else "time: unknown"]
    if unknown:
        lines.append(
            f"{unknown} job{'s' * (unknown > 1)} of unknown length: no finished run of the same recipe, "
            "no train.max_seconds; `pgolf plan ... --seconds S` takes a figure of yours."
        )
    for name, price in (prices or {}).items():
        machine = "" if name == THE_MACHINE else f" ({name})"
        lines.append(f"cost: {at_least}{total / 3600 * price:,.2f} at {price:,.2f} an hour{machine}")
    return lines


def _estimate(job: Job, known: dict[str, list[float]], given: float | None) -> Estimate:
    finished = _is_done(job.directory, digest(job.config)) and not job.config["force"]
    spent = known.get(group_digest(job.config))
    if spent:
        return Estimate(sum(spent) / len(spent), f"mean of {len(spent)} finished run{'s' * (len(spent) > 1)}", finished)
    if given is not None:
        return Estimate(given, "--seconds", finished)
    limit = (job.config.get("train") or {}).get("max_seconds")
    if limit is not None:
        return Estimate(float(limit), "train.max_seconds alone, so at least", finished)
    return Estimate(None, "no finished run of this recipe", finished)


def _finished(folders: Iterable[Path]) -> dict[str, list[float]]:
    """Group digest -> seconds of the finished runs in some folders."""
    seconds: dict[str, list[float]] = {}
    for folder in sorted(folders):
        for path in sorted(folder.glob("*/summary.json")):
            try:
                config: dict[str, Any] = read_json(path.with_name("config.json"))
                spent = sum(read_json(path).get("seconds", {}).values())
            except UserError:
                continue  # a damaged run tells nothing; `pgolf compare` names it
            seconds.setdefault(group_digest(config), []).append(spent)
    return seconds


def _is_done(directory: Path, wanted: str) -> bool:
    path = directory / "status.json"
    if not path.is_file():
        return False
    status = read_json(path)
    return bool(status.get("state") == "done" and status.get("digest") == wanted)


def duration(seconds: float | None) -> str:
    """Seconds in the unit that a person would say."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

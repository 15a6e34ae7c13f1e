"""A study written down before any of its runs: what would be trained, by which command, with which seeds, at what cost.

It has no score, and nothing that it is made of can hold one. PR 2059 was published so, without a submission.json, since
that file would claim a figure that nobody had measured.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import atomic_open, read_json, write_json
from pgolf.report.tables import markdown_table

NAMES = ("proposal.json", "proposal.md")
SCORED_FILES = ("summary.json", "scores.npz", "scores.parquet", "submission.json", "final.json", "results.tsv")
SCORE = re.compile(r"(^|_)(bpb|val_loss|nats)($|_)|^(score|scores|submission)$")
STATUS = "proposal: nothing was trained, so there is no score"


@dataclass(frozen=True)
class Configuration:
    """One recipe of the study. digest: of the recipe without the seed; changed: dotted key -> value, where it differs
    from the first configuration; hours: of one run, None where nothing tells, from `source`; config: all settings,
    resolved, without a seed of their own."""

    name: str
    digest: str
    parameters: int
    hours: float | None
    source: str
    changed: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True)
class Package:
    """Everything that a proposal says. hours: of all runs, None where some are unknown; prices: of an hour, by machine;
    mismatches: lines of a published budget that are not the product of their factors."""

    title: str
    command: str
    seeds: list[int]
    configurations: list[Configuration]
    runs: int
    hours: float | None
    prices: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    mismatches: list[str] = field(default_factory=list)


def write_proposal(directory: Path, package: Package) -> list[Path]:
    """Write proposal.json and proposal.md into a folder of their own. UserError when it holds a score, or when the
    package does."""
    refuse_scores(directory)
    content = {"status": STATUS, **asdict(package)}
    if found := next(scored_keys(content), None):
        raise UserError(f"a proposal cannot hold a score, and {found} would be one.")
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in NAMES]
    write_json(paths[0], content)
    with atomic_open(paths[1]) as file:
        file.write(render(package).encode())
    return paths


def refuse_scores(directory: Path) -> None:
    """UserError when a folder holds what a run measured, or a file that claims it."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file: give the folder of the proposal.")
    for path in sorted(directory.rglob("*")):
        if path.name in SCORED_FILES:
            raise UserError(
                f"{path} is what a run measured or claims: a proposal has no score, and lies in a folder of its own."
            )
        if path.suffix == ".json" and (found := next(scored_keys(read_json(path)), None)):
            raise UserError(f"{path} has a score under {found}: a proposal has none, and lies in a folder of its own.")


def scored_keys(value: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys, anywhere, that name a score."""
    if isinstance(value, dict):
        for key, child in value.items():
            dotted = f"{prefix}{key}"
            if SCORE.search(str(key)):
                yield dotted
            yield from scored_keys(child, f"{dotted}.")
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from scored_keys(child, f"{prefix}{index}.")


def render(package: Package) -> str:
    """The page for people."""
    rows = [
        [one.name, f"{one.parameters:,}", str(len(package.seeds)), _hours(one.hours), one.source]
        for one in package.configurations
    ]
    parts = [
        f"# {package.title}",
        f"Status: {STATUS}.",
        f"## Runs\n\n{package.runs} runs; seeds {', '.join(map(str, package.seeds))}, named before any of them.",
        markdown_table(["configuration", "parameters", "runs", "hours a run", "from"], rows),
        f"```\n{package.command}\n```",
        f"## Budget\n\n{_budget(package)}",
        *[_changed(one) for one in package.configurations if one.changed],
    ]
    if package.mismatches:
        parts.append("## The published budget\n\n" + "\n".join(f"- {one}" for one in package.mismatches))
    if package.remarks:
        parts.append("## To be known beforehand\n\n" + "\n".join(f"- {one}" for one in package.remarks))
    return "\n\n".join(parts) + "\n"


def _budget(package: Package) -> str:
    if package.hours is None:
        return "Not known for all runs: no finished run, no budget in seconds and no figure of one's own tells."
    rows = [
        [name, f"{price:,.2f}", f"{package.hours:,.1f}", f"{price * package.hours:,.2f}"]
        for name, price in package.prices.items()
    ]
    table = "\n\n" + markdown_table(["machine", "an hour", "hours", "cost"], rows) if rows else ""
    return f"{package.hours:,.1f} hours, one run after another.{table}"


def _changed(one: Configuration) -> str:
    lines = "\n".join(f"- `{key}`: {value}" for key, value in one.changed.items())
    return f"### {one.name}, changed from the first\n\n{lines}"


def _hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:.2f}"

"""`pgolf records [NAME]`: the published results, and what this version has of each."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json
from pgolf.report.presets import Preset, gaps
from pgolf.report.tables import text_table

RECORDS_FILE = Path(__file__).with_name("records.json")
LIMIT_BYTES = 16_000_000
METRICS = {
    "post_ttt": "after test-time training",
    "sliding": "sliding window, no test-time training",
    "flat": "rows of the text as it comes, no test-time training",
}
FLAGS = {
    "overlap": "validation documents are among the training documents",
    "data-disputed": "whether its training data overlaps the validation set is disputed",
    "older-export": "scored on an older export of the text; on the later one the same recipe gave 1.2274 to 1.2286",
    "target-gates": "an expert of the scoring reads the token that it predicts (condition C1)",
    "over-time": "a part of the work lies outside the 600 s",
    "log-integrity": "the published logs contradict each other or themselves",
    "settings-differ": "the description and the logged settings differ; the logged ones are here",
    "seeds-left-out": "two of seven seeds that ran are not among the published ones",
    "same-seed": "all logs have the same seed, and one of them two GPUs and 2,400 s",
    "not-a-record": "published as a study, not as a record",
    "one-seed": "one seed: no spread is known",
}


@dataclass(frozen=True)
class Record:
    """One published result. `id` is the name of its preset; `runs` holds the figures of every logged seed; `base` names
    the settings that a record without a parent begins with."""

    id: str
    name: str
    parent: str | None
    base: str | None
    metric: str
    headline_group: str | None
    parameters: int
    flags: list[str]
    delta: dict[str, Any]
    runs: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """`PR 1736`, or the name where there is no number."""
        return title(self.id)

    @property
    def headline(self) -> list[dict[str, Any]]:
        """The runs behind the published mean."""
        return [run for run in self.runs if run.get("group") == self.headline_group]

    @property
    def mean(self) -> float:
        """Mean bits per byte of the headline runs."""
        return statistics.fmean(run["bpb"] for run in self.headline)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1), None for one seed."""
        values = [run["bpb"] for run in self.headline]
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def artifact_bytes(self) -> int | None:
        """The largest artifact of any logged seed, code included; None when none was logged."""
        return max((run["artifact_bytes"] for run in self.runs if "artifact_bytes" in run), default=None)


@dataclass(frozen=True)
class Evidence:
    """Reference numbers of published scripts that pgolf gives too (`scripts/parity.py`).

    cases: how the names of the files begin; what: what is compared; records: those whose script gave the numbers, or
    has the same code there.
    """

    cases: str
    what: str
    records: list[str]


@dataclass(frozen=True)
class Catalogue:
    """All records, the settings that a family of them shares, and the parity evidence."""

    bases: dict[str, dict[str, Any]]
    parity: list[Evidence]
    records: list[Record]

    def find(self, name: str) -> Record:
        """The record called `1736`, `#1736`, `pr1736` or `naive`; UserError when there is none."""
        wanted = name.lower().removeprefix("#")
        for record in self.records:
            if wanted in (record.id, record.id.removeprefix("pr")):
                return record
        known = ", ".join(record.id for record in self.records)
        raise UserError(f"there is no record {name!r}; known: {known}.")

    def lineage(self, record: Record) -> list[str]:
        """Names from the oldest known ancestor to the record itself."""
        by_name = {one.id: one for one in self.records}
        line = [record.id]
        while (parent := by_name[line[0]].parent) is not None:
            line.insert(0, parent)
        return line

    def evidence(self, name: str) -> list[Evidence]:
        """What is compared with numbers of this record's own script."""
        return [one for one in self.parity if name in one.records]

    def nearest_evidence(self, record: Record) -> str | None:
        """The record itself, or else its nearest ancestor, that has evidence of its own; None without one."""
        return next((name for name in reversed(self.lineage(record)) if self.evidence(name)), None)


@dataclass(frozen=True)
class Changes:
    """How two presets differ: (value there, value here) by dotted key."""

    parent: str
    values: dict[str, list[str]]


def title(name: str) -> str:
    """`PR 1736` for `pr1736`; other names stay."""
    return f"PR {name[2:]}" if name.startswith("pr") else name


def load_catalogue(path: Path = RECORDS_FILE) -> Catalogue:
    """Read the published records."""
    content = read_json(path)
    parity = [Evidence(**entry) for entry in content["parity"]]
    return Catalogue(content["bases"], parity, [Record(**entry) for entry in content["records"]])


def render_table(catalogue: Catalogue, presets: dict[str, Preset]) -> str:
    """All records, lowest bits per byte first, and what the words in it mean."""
    ordered = sorted(catalogue.records, key=lambda record: record.mean)
    headers = ["record", "name", "flags", "here", "parity", "BPB", "std", "n", "parameters"]
    headers += ["artifact bytes", "parent"]
    rows = [
        [
            record.id,
            record.name,
            ", ".join(record.flags),
            _here(presets, record),
            _parity_word(catalogue, record),
            f"{record.mean:.5f}",
            f"{record.std:.5f}" if record.std is not None else "-",
            str(len(record.headline)),
            f"{record.parameters:,}",
            f"{record.artifact_bytes:,}" if record.artifact_bytes is not None else "-",
            record.parent or "-",
        ]
        for record in ordered
    ]
    used = [flag for flag in FLAGS if any(flag in record.flags for record in ordered)]
    parts = [
        text_table(headers, rows, left=5),
        (
            "BPB: published mean over n seeds, std: sample standard deviation (n - 1), both worked "
            "out from the logs.\nartifact bytes: weights and code of the largest seed as logged.\n"
            "here: whether there is a preset (experiment=NAME), and how many things of the published run it lacks; "
            "`pgolf records NAME` names them.\n"
            "parity: how many kinds of numbers of its own script are reproduced, else the nearest ancestor of which "
            "some are (`scripts/parity.py`)."
        ),
        "flags:\n" + "\n".join(f"  {flag}: {FLAGS[flag]}" for flag in used),
    ]
    if own := sorted(presets.keys() - {record.id for record in ordered}):
        parts.append(f"Other presets: {', '.join(own)}.")
    return "\n\n".join(parts)


def _here(presets: dict[str, Preset], record: Record) -> str:
    if record.id not in presets:
        return "-"
    missing = len(gaps(presets, record.id).missing)
    return f"all but {missing}" if missing else "all"


def _parity_word(catalogue: Catalogue, record: Record) -> str:
    nearest = catalogue.nearest_evidence(record)
    return str(len(catalogue.evidence(record.id))) if nearest == record.id else f"({nearest})" if nearest else "-"


def render_record(
    catalogue: Catalogue, record: Record, presets: dict[str, Preset], changes: Changes | None = None
) -> str:
    """One record: lineage, preset and what it lacks, parity, settings that differ from its parent, every seed.

    changes: how its preset differs from the nearest preset that it builds on.
    """
    std = f" ± {record.std:.5f}" if record.std is not None else " (one seed: no spread)"
    group = f", runs of the group {record.headline_group}" if record.headline_group else ""
    lines = [
        f"{record.title}: {record.name}",
        f"  bits per byte  {record.mean:.5f}{std}, n={len(record.headline)}{group}",
        f"  measured       {METRICS[record.metric]}",
        f"  parameters     {record.parameters:,}",
        f"  artifact       {f'at most {record.artifact_bytes:,} bytes' if record.artifact_bytes else 'not logged'}",
        f"  lineage        {' -> '.join(catalogue.lineage(record))}",
        *_preset_lines(presets, record),
        *_parity_lines(catalogue, record),
        *[f"  ! {flag}: {FLAGS[flag]}" for flag in record.flags],
    ]
    origin = title(record.parent) if record.parent else f"the settings that the {record.base} records share"
    delta = [f"  {key} = {value}" for key, value in record.delta.items()] or ["  nothing"]
    parts = ["\n".join(lines), f"published settings, changed from {origin}:\n" + "\n".join(delta)]
    if record.base is not None:
        shared = [f"  {key} = {value}" for key, value in catalogue.bases[record.base].items()]
        parts.append(f"shared by the {record.base} records:\n" + "\n".join(shared))
    if changes is not None:
        changed = [f"  {key}: {' -> '.join(values)}" for key, values in changes.values.items()] or ["  nothing"]
        parts.append(f"experiment={record.id}, changed from experiment={changes.parent}:\n" + "\n".join(changed))
    parts.append(_seeds_table(record))
    return "\n\n".join(parts)


def _preset_lines(presets: dict[str, Preset], record: Record) -> list[str]:
    if record.id not in presets:
        return ["  preset         none in this version"]
    found = gaps(presets, record.id)
    return [
        f"  preset         experiment={record.id}",
        *[f"  missing        {one}" for one in found.missing],
        *[f"  differs        {one}" for one in found.differs],
    ]


def _parity_lines(catalogue: Catalogue, record: Record) -> list[str]:
    nearest = catalogue.nearest_evidence(record)
    if nearest is None:
        return ["  parity         none: not checked in this version"]
    note = "" if nearest == record.id else f" [of {nearest}]"
    return [f"  parity         {one.what} ({one.cases}*){note}" for one in catalogue.evidence(nearest)]


def _seeds_table(record: Record) -> str:
    columns = (
        ("group", "group", "{}"),
        ("seed", "seed", "{}"),
        ("steps", "steps", "{:,}"),
        ("train s", "train_seconds", "{:.1f}"),
        ("trained BPB", "pre_quant_bpb", "{:.5f}"),
        ("compressed BPB", "post_quant_bpb", "{:.5f}"),
        ("final BPB", "bpb", "{:.5f}"),
        ("eval s", "eval_seconds", "{:.1f}"),
        ("artifact bytes", "artifact_bytes", "{:,}"),
        ("left of limit", "left", "{:,}"),
    )
    shown = columns if any(run.get("group") for run in record.runs) else columns[1:]
    rows = []
    for run in record.runs:
        figures = dict(run)
        if "artifact_bytes" in run:
            figures["left"] = LIMIT_BYTES - run["artifact_bytes"]
        rows.append([form.format(figures[key]) if key in figures else "-" for _, key, form in shown])
    return text_table([title for title, _, _ in shown], rows)

"""`pgolf records [NAME]`: the published results, and what this version has of each."""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json
from pgolf.report.tables import text_table

RECORDS_FILE = Path(__file__).with_name("records.json")
LIMIT_BYTES = 16_000_000
METRICS = {
    "post_ttt": "after test-time training",
    "sliding": "sliding window, no test-time training",
}
FLAGS = {
    "overlap": "validation documents are among the training documents",
    "data-disputed": "whether its training data overlaps the validation set is disputed",
    "target-gates": "an expert of the scoring reads the token that it predicts (condition C1)",
    "over-time": "a part of the work lies outside the 600 s",
    "log-integrity": "the published logs contradict each other or themselves",
    "settings-differ": "the description and the logged settings differ; the logged ones are here",
    "seeds-left-out": "two of seven seeds that ran are not among the published ones",
    "not-a-record": "published as a study, not as a record",
    "one-seed": "one seed: no spread is known",
}


@dataclass(frozen=True)
class Record:
    """One published result; `runs` holds the figures of every logged seed."""

    pr: int
    name: str
    parent: int | None
    metric: str
    headline_group: str | None
    parameters: int
    flags: list[str]
    delta: dict[str, Any]
    runs: list[dict[str, Any]]

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

    @property
    def preset(self) -> str:
        """The name of its preset: `experiment=<preset>`."""
        return f"pr{self.pr}"


@dataclass(frozen=True)
class Catalogue:
    """All records, the settings that they share, and the parity evidence by preset name."""

    base: dict[str, Any]
    parity: dict[str, list[str]]
    records: list[Record]

    def find(self, name: str) -> Record:
        """The record called `1736`, `#1736` or `pr1736`; UserError when there is none."""
        wanted = name.lower().removeprefix("#").removeprefix("pr")
        for record in self.records:
            if str(record.pr) == wanted:
                return record
        known = ", ".join(record.preset for record in self.records)
        raise UserError(f"there is no record {name!r}; known: {known}.")

    def lineage(self, record: Record) -> list[int]:
        """PR numbers from the oldest known ancestor to the record itself."""
        by_number = {one.pr: one for one in self.records}
        line = [record.pr]
        while (parent := by_number[line[0]].parent) in by_number and parent is not None:
            line.insert(0, parent)
        return line


def load_catalogue(path: Path = RECORDS_FILE) -> Catalogue:
    """Read the published records."""
    content = read_json(path)
    records = [Record(**entry) for entry in content["records"]]
    return Catalogue(content["base"], content["parity"], records)


def preset_directory() -> Path:
    """`conf/experiment` inside an installed package, else that of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf" / "experiment"
    return installed if installed.is_dir() else package.parent / "conf" / "experiment"


def preset_names(directory: Path) -> set[str]:
    """Names of the presets in a folder; UserError when the folder is not there."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder of presets: give --presets DIR.")
    return {path.stem for path in directory.glob("*.yaml")} - {"none"}


def main(argv: list[str] | None = None) -> int:
    """Print the table of records, or one record; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="pgolf records",
        description="The published results: figures, lineage, presets and parity evidence.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one record, such as pr1736")
    parser.add_argument(
        "--presets",
        type=Path,
        metavar="DIR",
        help="folder of experiment presets (default: the ones of this version)",
    )
    arguments = parser.parse_args(argv)
    catalogue = load_catalogue()
    presets = preset_names(arguments.presets or preset_directory())
    if arguments.name is None:
        print(render_table(catalogue, presets))
    else:
        print(render_record(catalogue, catalogue.find(arguments.name), presets))
    return 0


def render_table(catalogue: Catalogue, presets: set[str]) -> str:
    """All records, lowest bits per byte first, and what the flags mean."""
    ordered = sorted(catalogue.records, key=lambda record: record.mean)
    headers = ["PR", "name", "flags", "preset", "parity", "BPB", "std", "n", "parameters"]
    headers += ["artifact bytes", "parent"]
    rows = [
        [
            str(record.pr),
            record.name,
            ", ".join(record.flags),
            record.preset if record.preset in presets else "-",
            "yes" if catalogue.parity.get(record.preset) else "-",
            f"{record.mean:.5f}",
            f"{record.std:.5f}" if record.std is not None else "one seed",
            str(len(record.headline)),
            f"{record.parameters:,}",
            f"{record.artifact_bytes:,}" if record.artifact_bytes is not None else "-",
            str(record.parent or "-"),
        ]
        for record in ordered
    ]
    used = [flag for flag in FLAGS if any(flag in record.flags for record in ordered)]
    parts = [
        text_table(headers, rows, left=5),
        (
            "BPB: published mean over n seeds, std: sample standard deviation (n - 1), both worked "
            "out from the logs.\nartifact bytes: weights and code of the largest seed as logged."
        ),
        "flags:\n" + "\n".join(f"  {flag}: {FLAGS[flag]}" for flag in used),
        _presets_line(catalogue, presets),
    ]
    return "\n\n".join(parts)


def _presets_line(catalogue: Catalogue, presets: set[str]) -> str:
    names = {record.preset for record in catalogue.records}
    have, own = sorted(names & presets), sorted(presets - names)
    checked = sorted(name for name in names if catalogue.parity.get(name))
    lines = []
    lines.append(f"Presets in this version: {', '.join(have) or 'none of these records'}.")
    if own:
        lines.append(f"Other presets: {', '.join(own)}.")
    if checked:
        lines.append(f"Checked for parity with the published script: {', '.join(checked)}.")
    else:
        lines.append("No record is checked for parity with its published script in this version.")
    return "\n".join(lines)


def render_record(catalogue: Catalogue, record: Record, presets: set[str]) -> str:
    """One record: lineage, preset, parity, settings that differ from its parent, every seed."""
    std = f" ± {record.std:.5f}" if record.std is not None else " (one seed: no spread)"
    group = f", runs of the group {record.headline_group}" if record.headline_group else ""
    evidence = catalogue.parity.get(record.preset) or ["none: not checked in this version"]
    has_preset = record.preset in presets
    preset = f"experiment={record.preset}" if has_preset else "none in this version"
    lines = [
        f"PR {record.pr}: {record.name}",
        f"  bits per byte  {record.mean:.5f}{std}, n={len(record.headline)}{group}",
        f"  measured       {METRICS[record.metric]}",
        f"  parameters     {record.parameters:,}",
        f"  lineage        {' -> '.join(map(str, catalogue.lineage(record)))}",
        f"  preset         {preset}",
        *[f"  parity         {one}" for one in evidence],
        *[f"  ! {flag}: {FLAGS[flag]}" for flag in record.flags],
    ]
    origin = f"PR {record.parent}" if record.parent else "the settings that all records share"
    delta = [f"  {key} = {value}" for key, value in record.delta.items()] or ["  nothing"]
    parts = ["\n".join(lines), f"changed from {origin}:\n" + "\n".join(delta)]
    if record.parent is None:
        shared = [f"  {key} = {value}" for key, value in catalogue.base.items()]
        parts.append("shared by all records:\n" + "\n".join(shared))
    parts.append(_seeds_table(record))
    return "\n\n".join(parts)


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

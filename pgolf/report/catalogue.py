"""The published results, and the recipes that were published without one."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json

RECORDS_FILE = Path(__file__).with_name("records.json")


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
class Proposal:
    """A published recipe that nobody has trained: it has no score, and no field that could hold one. seeds: those it
    names in advance; delta: settings that differ from the parent's."""

    id: str
    name: str
    parent: str
    parameters: int
    seeds: list[int]
    delta: dict[str, Any]

    @property
    def title(self) -> str:
        """`PR 2059 (all)`."""
        number, _, which = title(self.id).partition("_")
        return f"{number} ({which})" if which else number


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
    """All records and proposals, the settings that a family of records shares, and the parity evidence."""

    bases: dict[str, dict[str, Any]]
    parity: list[Evidence]
    records: list[Record]
    proposals: list[Proposal]

    @property
    def entries(self) -> list[Record | Proposal]:
        """Records, then proposals."""
        return [*self.records, *self.proposals]

    def find(self, name: str) -> Record:
        """The record called `1736`, `#1736`, `pr1736` or `naive`; UserError when there is none."""
        found = self.published(name)
        if isinstance(found, Proposal):
            raise UserError(f"{found.title} is a proposal: nobody has trained it, so it has no figures.")
        return found

    def published(self, name: str) -> Record | Proposal:
        """The record or the proposal of that name, as `find`."""
        wanted = name.lower().removeprefix("#")
        for one in self.entries:
            if wanted in (one.id, one.id.removeprefix("pr")):
                return one
        raise UserError(f"there is no record {name!r}; known: {', '.join(one.id for one in self.entries)}.")

    def lineage(self, record: Record | Proposal) -> list[str]:
        """Names from the oldest known ancestor to the record itself."""
        by_name: dict[str, Record | Proposal] = {one.id: one for one in self.entries}
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


def title(name: str) -> str:
    """`PR 1736` for `pr1736`; other names stay."""
    return f"PR {name[2:]}" if name.startswith("pr") else name


def load_catalogue(path: Path = RECORDS_FILE) -> Catalogue:
    """Read the published records."""
    content = read_json(path)
    parity = [Evidence(**entry) for entry in content["parity"]]
    records = [Record(**entry) for entry in content["records"]]
    return Catalogue(content["bases"], parity, records, [Proposal(**entry) for entry in content["proposals"]])

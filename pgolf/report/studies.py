"""Studies that were published as a plan: their sweep, and the budget that they ask for, worked out again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json
from pgolf.report.tables import text_table

STUDIES_FILE = Path(__file__).with_name("studies.json")
ROUNDING = 0.05
"""Hours by which a figure with one decimal may differ from what it rounds."""


@dataclass(frozen=True)
class Row:
    """One line of a published budget, in hours: configurations x seeds x hours a run, or a share of all lines before
    it; listed: what the table says."""

    phase: str
    listed: float
    configurations: int = 0
    seeds: int = 0
    hours: float = 0.0
    share: float | None = None

    def product(self, before: float) -> float:
        """What the line comes to. before: hours of the lines above it."""
        return self.configurations * self.seeds * self.hours if self.share is None else self.share * before


@dataclass(frozen=True)
class Budget:
    """A published table of hours, and where it is from."""

    source: str
    rows: list[Row]
    total: float

    def checked(self) -> list[tuple[Row, float]]:
        """Every line with what it should say, a share being taken of the lines as they are listed."""
        found, before = [], 0.0
        for row in self.rows:
            found.append((row, row.product(before)))
            before += row.listed
        return found

    def mismatches(self) -> list[str]:
        """A sentence for every line that is not the product of its own factors, and for a wrong sum."""
        sentences = [
            f"{row.phase}: {_factors(row)} = {product:.1f} hours, the table lists {row.listed:.1f}"
            for row, product in self.checked()
            if abs(product - row.listed) > ROUNDING
        ]
        total = sum(row.listed for row in self.rows)
        if abs(total - self.total) > ROUNDING:
            sentences.append(f"the lines add up to {total:.1f} hours, the table says {self.total:.1f}")
        return sentences

    def worked_out(self) -> float:
        """The hours of all lines by their own factors."""
        total = 0.0
        for row in self.rows:
            total += row.product(total)
        return total

    def render(self) -> str:
        """The table, with what each line comes to."""
        wrong = {row.phase for row, product in self.checked() if abs(product - row.listed) > ROUNDING}
        rows = [
            [row.phase, _factors(row), f"{row.listed:.2f}", f"{product:.2f}", "MISMATCH" if row.phase in wrong else ""]
            for row, product in self.checked()
        ]
        rows.append(["total", "", f"{self.total:.2f}", f"{self.worked_out():.2f}", ""])
        return text_table(["phase", "configurations x seeds x hours", "listed", "product", ""], rows, left=2)


@dataclass(frozen=True)
class Study:
    """A sweep with a name: its overrides, as for `pgolf --multirun`, what is worth knowing before it, and the budget
    that was published for it."""

    name: str
    title: str
    overrides: list[str]
    remarks: list[str]
    budget: Budget

    def with_words(self, words: list[str]) -> list[str]:
        """The overrides, of which those that `words` set too give way to them."""
        given = {word.partition("=")[0] for word in words}
        return [one for one in self.overrides if one.partition("=")[0] not in given] + words


def load_studies(path: Path = STUDIES_FILE) -> dict[str, Study]:
    """All studies by name."""
    return {name: _study(name, entry) for name, entry in read_json(path).items()}


def find_study(name: str, path: Path = STUDIES_FILE) -> Study:
    """The study of that name; UserError when there is none."""
    studies = load_studies(path)
    if name not in studies:
        raise UserError(f"there is no study {name!r}; known: {', '.join(studies)}.")
    return studies[name]


def _study(name: str, entry: dict[str, Any]) -> Study:
    budget = entry["budget"]
    rows = [Row(**row) for row in budget["rows"]]
    return Study(
        name, entry["title"], entry["overrides"], entry["remarks"], Budget(budget["source"], rows, budget["total"])
    )


def _factors(row: Row) -> str:
    if row.share is not None:
        return f"{row.share:.0%} of the lines above"
    return f"{row.configurations} x {row.seeds} x {row.hours:g}"

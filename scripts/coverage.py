"""Write docs/coverage.md: what became of every mechanism in the community's inventory, from scripts/coverage.yaml.

A row works (with the test that shows it), was built or tried and is recorded as a negative (with what was measured), or
is out of scope (with the reason). A test that is named must exist: tests/scripts/test_coverage.py.

  python scripts/coverage.py            write docs/coverage.md
  python scripts/coverage.py --check    exit status 1 when it is out of date
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from pgolf.errors import UserError
from pgolf.files import write_bytes
from pgolf.report.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
SOURCE, DOCUMENT = ROOT / "scripts" / "coverage.yaml", ROOT / "docs" / "coverage.md"
STATES = {"works": "works", "negative": "recorded as negative", "out": "out of scope"}
LEAD = """\
# Coverage

Every row of an inventory of what the participants of the challenge tried, or said that they would: mechanisms, recipes,
tools, ways of working. **works**: built here, with a test that fails when it does not do what its formula says.
**recorded as negative**: built or measured, and not worth choosing; it says what was measured. **out of scope**: it
does not belong to a framework for training, or cannot be valid, or its description does not suffice; it says which.
Made by `python scripts/coverage.py` from scripts/coverage.yaml; `docs/techniques.md` lists every option with its
formula.
"""


@dataclass(frozen=True)
class Row:
    """One line of the inventory. tests: ids of tests (path::name), for what works or is runnable; text: how it is
    chosen here, what was measured, or why it is left out."""

    number: str
    kind: str
    name: str
    state: str
    tests: tuple[str, ...]
    text: str


def read_rows(path: Path = SOURCE) -> list[Row]:
    """The rows of the source. UserError for one that has no state, two, or a working one without a test."""
    rows = []
    for kind, entries in yaml.safe_load(path.read_text("utf-8")).items():
        for entry in entries:
            states = [state for state in STATES if state in entry]
            number, name = str(entry.get("row", "")), str(entry.get("name", ""))
            if len(states) != 1:
                raise UserError(
                    f"row {number} ({name}) of {path.name} needs one of {', '.join(STATES)}; it has {states}"
                )
            tests = entry.get("tests", [])
            tests = (tests,) if isinstance(tests, str) else tuple(tests)
            if states[0] == "works" and not tests:
                raise UserError(f"row {number} ({name}) of {path.name} works, but names no test")
            rows.append(Row(number, kind, name, states[0], tests, str(entry[states[0]])))
    return rows


def document(rows: list[Row]) -> str:
    """The whole page."""
    counts = ", ".join(f"{sum(row.state == state for row in rows)} {said}" for state, said in STATES.items())
    parts = [LEAD.rstrip(), f"{len(rows)} rows: {counts}."]
    for kind in dict.fromkeys(row.kind for row in rows):
        some = [row for row in rows if row.kind == kind]
        cells = [
            [row.number, row.name, STATES[row.state], row.text, "<br>".join(f"`{one}`" for one in row.tests)]
            for row in some
        ]
        parts.append(f"## {kind}\n\n" + markdown_table(["row", "what", "state", "how, or why", "tests"], cells, left=5))
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write or check the document; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when the document is out of date")
    check = parser.parse_args(arguments).check
    content = document(read_rows())
    if check:
        current = DOCUMENT.is_file() and DOCUMENT.read_text("utf-8") == content
        print("docs/coverage.md is current." if current else "docs/coverage.md is out of date: run this script.")
        return 0 if current else 1
    write_bytes(DOCUMENT, content.encode())
    print(f"wrote {DOCUMENT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""docs/coverage.md: every row of the inventory once, and no test that does not exist."""

import ast
import importlib.util
from pathlib import Path

import pytest

from pgolf.errors import UserError

ROOT = Path(__file__).parents[2]
INVENTORY = 151  # rows


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("coverage_page", ROOT / "scripts" / "coverage.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_of_the_inventory_is_there_once(script):
    numbers = [int(row.number) for row in script.read_rows() if row.number.isdigit()]
    assert sorted(numbers) == list(range(1, INVENTORY + 1))


def test_every_test_that_is_named_exists(script):
    missing = []
    for row in script.read_rows():
        for test in row.tests:
            path, _, name = test.partition("::")
            file = ROOT / path
            known = _functions(file) if file.is_file() else set()
            if not file.is_file() or (name and name not in known):
                missing.append(f"row {row.number}: {test}")
    assert not missing


def test_the_page_is_current(script):
    assert script.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{row: 1, name: x}", "needs one of"),
        ("{row: 1, name: x, works: a, out: b}", "needs one of"),
        ("{row: 1, name: x, works: a}", "names no test"),
    ],
)
def test_a_row_without_a_state_or_a_test_is_refused(script, tmp_path, entry, complaint):
    path = tmp_path / "coverage.yaml"
    path.write_text(f"Model:\n  - {entry}\n")
    with pytest.raises(UserError, match=complaint):
        script.read_rows(path)


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

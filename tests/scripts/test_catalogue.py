"""docs/techniques.md lists what there is: every option with its own words, and no other."""

import importlib.util
import re
from pathlib import Path

import pytest

from pgolf.app.compose import composer, config_directory
from pgolf.app.heads import head_comment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "scripts" / "catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows():
    """Heading of a table (the key of its group) and name of an option -> cells."""
    found, key = {}, None
    for line in (ROOT / "docs" / "techniques.md").read_text().splitlines():
        if line.startswith("### "):
            key = line[4:].strip("`")
        elif line.startswith("| `"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert cells[0].startswith(f"`{key}=")
            found[key, cells[0].strip("`").partition("=")[2]] = cells
    return found


def test_every_option_has_a_row_with_the_words_of_its_file(script, rows):
    with composer() as made:
        expected = {}
        for group, names in made.groups().items():
            if group.partition("/")[0] in script.PARTS:
                for name in names:
                    path = config_directory() / group / f"{name}.yaml"
                    if name != "none" and path.is_file():
                        said, _, published = head_comment(path).partition(script.PUBLISHED)
                        expected[made.placed(group), name] = (said, published)
    listed = {place: (cells[1], cells[7]) for place, cells in rows.items()}
    assert listed == expected, "run python scripts/catalogue.py"
    assert all(said for said, _ in expected.values()), "every option begins with a comment that says what it does"


@pytest.mark.parametrize("place", [("model/attention/gate", "sparse"), ("model/vectors", "virtual")])
def test_costs_are_those_of_the_full_model(script, rows, place):
    key, name = place
    with composer() as made:
        costs = script.Costs(made.jobs(script.FULL, False)[0])
        option = script.Option(key, name, key, made.jobs([*script.FULL, f"{key}={name}"], False)[0], "")
        assert costs.change(option) == rows[place][3:6], "run python scripts/catalogue.py"


def test_a_measured_effect_is_shown_with_interval_and_seeds(script):
    entry = {"change_bpb": -0.0123, "low": -0.02, "high": -0.005, "seeds": 3}
    assert script.effect(entry) == "-0.0123 (-0.0200 .. -0.0050, n=3)"
    assert script.effect(None) == ""

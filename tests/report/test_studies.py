"""Published plans: their sweeps, and budgets that are worked out again."""

import pytest

from pgolf.errors import UserError
from pgolf.model.phi import SEEDS
from pgolf.report.studies import Budget, Row, Study, find_study


@pytest.fixture(scope="module")
def study() -> Study:
    return find_study("golden_sunflowers")


def test_the_two_mismatches_of_the_published_budget_are_found(study: Study) -> None:
    """seeds, PR 2059: 4 x 3 x 4 is 48 and not 12; 3 x 4 is 12 and not 8. Nothing else is wrong, not even the sum."""
    assert study.budget.mismatches() == [
        "learning-rate band: 4 x 3 x 4 = 48.0 hours, the table lists 12.0",
        "TTT evaluation, three seeds again: 1 x 3 x 4 = 12.0 hours, the table lists 8.0",
    ]
    assert study.budget.total == 109.4
    assert study.budget.worked_out() == pytest.approx((0.17 + 60 + 20 + 48) * 1.1 + 12)
    assert study.budget.render().count("MISMATCH") == 2


def test_a_budget_that_is_right_has_no_mismatch_and_a_wrong_sum_is_one() -> None:
    rows = [Row("all", 24.0, configurations=2, seeds=3, hours=4.0), Row("buffer", 2.4, share=0.1)]
    assert Budget("here", rows, 26.4).mismatches() == []
    assert Budget("here", rows, 30.0).mismatches() == ["the lines add up to 26.4 hours, the table says 30.0"]


def test_the_sweep_is_five_configurations_of_five_fibonacci_seeds(study: Study) -> None:
    experiments, seeds = (one.partition("=")[2].split(",") for one in study.overrides)
    assert [one.removeprefix("pr2059_") for one in experiments] == ["baseline", "phinta", "jepa", "ut", "all"]
    assert tuple(map(int, seeds)) == SEEDS


def test_words_take_the_place_of_what_they_set(study: Study) -> None:
    assert study.with_words(["seed=1", "scale=mini"]) == [study.overrides[0], "seed=1", "scale=mini"]


def test_an_unknown_study_is_a_sentence() -> None:
    with pytest.raises(UserError, match="there is no study 'mine'; known: golden_sunflowers"):
        find_study("mine")

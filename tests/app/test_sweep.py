"""Order and cost of a sweep."""

import pytest

from pgolf.app import estimate
from pgolf.app.estimate import Estimate
from pgolf.app.sweep import seeds_first


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["-m", "a=1,2", "seed=1,2", "b=3"], ["-m", "seed=1,2", "a=1,2", "b=3"]),
        (["--config-dir", "x", "a=1", "-m", "seed=1"], ["--config-dir", "x", "seed=1", "a=1", "-m"]),
        (["seed=1,2", "a=1", "-m"], ["seed=1,2", "a=1", "-m"]),
        (["~ttt", "model.seed=3", "-m"], ["~ttt", "model.seed=3", "-m"]),
        ([], []),
    ],
)
def test_seeds_change_slowest_and_nothing_else_moves(given, expected):
    assert seeds_first(given) == expected


def test_what_a_study_costs_is_summed_over_what_is_left():
    found = [Estimate(60.0, "", True), Estimate(3600.0, "", False), Estimate(1800.0, "", False)]
    prices = {estimate.THE_MACHINE: 20.0}
    assert estimate.summed(found, prices) == ["time: 90 min, one job after another", "cost: 30.00 at 20.00 an hour"]
    found.append(Estimate(None, "", False))
    lines = estimate.summed(found, prices)
    assert lines[0].startswith("time: at least 90 min") and "1 job of unknown length" in lines[1]
    assert lines[2].startswith("cost: at least 30.00")
    assert estimate.summed([Estimate(None, "", False)])[0] == "time: unknown"

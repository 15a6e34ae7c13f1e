"""One clock with named phases, and both readings of the time rules."""

import pytest

from pgolf.train.clock import SCORING, TRAINING, BudgetClock, limits


class Now:
    """A clock that says what a test wants."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_phases_add_up():
    now = Now()
    clock = BudgetClock({"train": 5.0}, now)
    for phase, seconds, total in (("train", 2.0, 7.0), ("calibrate", 3.0, 3.0), ("train", 1.0, 8.0)):
        with clock.phase(phase):
            now.seconds += seconds
            assert clock.elapsed(phase) == total
        now.seconds += 100.0  # between phases nothing counts
    assert clock.seconds == {"train": 8.0, "calibrate": 3.0}
    assert clock.elapsed("pack") == 0.0


def test_a_phase_inside_another_stops_the_outer_one():
    now = Now()
    clock = BudgetClock(now=now)
    with clock.phase("train"):
        now.seconds += 1.0
        with clock.phase("validate"):
            now.seconds += 50.0
            assert clock.elapsed("train") == 1.0
        now.seconds += 2.0
    assert clock.seconds == {"train": 3.0, "validate": 50.0}
    with pytest.raises(RuntimeError, match="inside itself"), clock.phase("a"), clock.phase("a"):
        pass


def test_a_clock_that_jumps_back_takes_nothing_away():
    now = Now()
    clock = BudgetClock(now=now)
    with clock.phase("train"):
        now.seconds += 10.0
        assert clock.elapsed("train") == 10.0
        now.seconds -= 3600.0
        assert clock.elapsed("train") == 10.0
        now.seconds += 5.0
    assert clock.seconds["train"] == 15.0


def test_an_error_ends_its_phase():
    clock = BudgetClock(now=Now())
    with pytest.raises(ValueError), clock.phase("train"):
        raise ValueError
    with clock.phase("train"):
        pass


def test_both_readings_of_the_time_limits():
    training = dict.fromkeys(TRAINING, 0.0) | {"train": 599.0, "calibrate": 4.0, "compile": 500.0, "quantise": 90.0}
    scoring = dict.fromkeys(SCORING, 0.0) | {"score": 450.0, "precompute": 140.0, "load": 11.0}
    table = limits(training, scoring, 600.0, 600.0)
    assert table["train_as_practised"] == {"seconds": 599.0, "limit": 600.0, "within": True}
    assert table["train_strict"] == {"seconds": 603.0, "limit": 600.0, "within": False}
    assert (table["score_as_practised"]["seconds"], table["score_strict"]["seconds"]) == (590.0, 601.0)

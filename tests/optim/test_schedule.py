"""Schedules by one position, and the table of all of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.optim.schedule import (
    Activation,
    Constant,
    MomentumRamp,
    Position,
    Product,
    Rewarmup,
    Stages,
    StepWarmdown,
    Taper,
    Warmdown,
)
from pgolf.optim.table import never_happened, planned, planned_and_actual, positions, with_changes

CONTEXT = [(1024, 0.1), (2048, 0.7), (3072, 1.0)]  # PR 2014
ALL = {
    "lr_scale": Product(factors=[Warmdown(fraction=0.75, floor=0.1), Rewarmup(steps=32)]),
    "momentum": MomentumRamp(start=0.92, end=0.97, steps=1500),
    "weight_decay": Taper(start=0.7, final=0.5),
    "plan": Activation(first="plain", starts={"looped": 0.65, "loop1": 0.5}),
    "sequence_tokens": Stages(stages=CONTEXT),
}


def at(fraction, step=0, **more):
    return Position(step, fraction, **more)


@given(progress=st.floats(0, 1), fraction=st.floats(0.01, 1), floor=st.floats(0, 1))
def test_warmdown_stays_between_floor_and_one_and_never_rises(progress, fraction, floor):
    schedule = Warmdown(fraction=fraction, floor=floor)
    assert floor <= schedule.at(at(progress)) <= 1.0
    assert schedule.at(at(progress)) >= schedule.at(at(min(1.0, progress + 0.1))) - 1e-12


def test_schedules_at_hand_worked_points():
    schedule = Warmdown(fraction=0.5, floor=0.1)
    assert [schedule(moment) for moment in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.1]
    ramp = MomentumRamp(start=0.8, end=0.9, steps=10)
    assert [ramp.at(at(0.0, step)) for step in (0, 10, 99)] == [0.8, 0.9, 0.9]
    assert ramp(5) == pytest.approx(0.85)
    taper = Taper(start=0.7, final=0.5)
    assert [taper.at(at(moment)) for moment in (0.0, 0.7, 0.85, 1.0, 1.3)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
    assert Constant(value=0.3).at(at(0.4)) == 0.3


def test_recurrence_starts_at_once_or_plan_by_plan():
    hard = Activation(first="plain", starts={"looped": 0.35})
    assert [hard.at(at(moment)) for moment in (0.0, 0.3499, 0.35, 1.0)] == ["plain", "plain", "looped", "looped"]
    assert [ALL["plan"].at(at(moment)) for moment in (0.49, 0.5, 0.65)] == ["plain", "loop1", "looped"]
    assert Activation(first="looped", starts={}).at(at(0.0)) == "looped"


def test_the_published_context_grows_at_the_end_of_each_stage():
    lengths = Stages(stages=CONTEXT)
    assert [lengths.at(at(moment)) for moment in (0.0, 0.1, 0.1001, 0.7, 0.71, 1.0, 1.1)] == [
        1024,
        1024,
        2048,
        2048,
        3072,
        3072,
        3072,
    ]


def test_learning_rates_warm_up_again_after_a_change():
    rewarmup = Rewarmup(steps=32)
    assert rewarmup.at(at(0.05, 3)) == 1.0  # the first stage
    found = [rewarmup.at(at(0.2, step, changed_at=646)) for step in (646, 647, 661, 677, 678, 900)]
    assert found == [1 / 32, 2 / 32, 0.5, 1.0, 1.0, 1.0]


def test_the_baselines_warmdown_guesses_the_length_of_a_step():
    schedule = StepWarmdown(steps=1200, max_steps=20000, max_seconds=600.0)
    assert schedule.at(at(0.0, 6000, seconds=300.0)) == 1.0  # 60 s of warmdown, 300 s left
    assert schedule.at(at(0.0, 6000, seconds=594.0)) == pytest.approx(6 / 118.8)
    without = StepWarmdown(steps=100, max_steps=1000, max_seconds=None)
    assert [without.at(at(0.0, step)) for step in (899, 900, 950)] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Warmdown(fraction=0.0, floor=0.1), "fraction"),
        (lambda: MomentumRamp(start=0.8, end=0.9, steps=0), "steps=0"),
        (lambda: StepWarmdown(steps=-1, max_steps=1, max_seconds=None), "steps=-1"),
        (lambda: StepWarmdown(steps=1, max_steps=None, max_seconds=None), "no end"),
        (lambda: MomentumRamp(start=-0.1, end=0.9, steps=10), "start=-0.1"),
        (lambda: MomentumRamp(start=0.8, end=1.0, steps=10), "end=1.0"),
        (lambda: Taper(start=1.0, final=0.5), "start=1.0"),
        (lambda: Activation(first="plain", starts={"a": 0.5, "b": 0.5}), "different parts"),
        (lambda: Stages(stages=[(1024, 0.5)]), "the last at 1"),
        (lambda: Stages(stages=[(1024, 0.5), (2048, 0.4), (3, 1.0)]), "rising"),
        (lambda: Stages(stages=[]), "pairs"),
        (lambda: Rewarmup(steps=0), "steps=0"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_table_holds_every_schedule_and_goes_through_json():
    moments = with_changes(positions(max_steps=4888, max_seconds=596.0, points=201), ALL["sequence_tokens"])
    table = planned(ALL, moments)
    assert set(table) == {"step", "fraction", "seconds", *ALL}
    assert json.loads(json.dumps(table)) == table
    assert {len(column) for column in table.values()} == {201}
    assert table["seconds"][-1] == 596.0 and table["step"][-1] == 4888
    first = table["sequence_tokens"].index(2048)
    assert moments[first - 1].changed_at is None and moments[first].changed_at == table["step"][first]
    assert table["lr_scale"][first] == pytest.approx(1 / 32) and table["lr_scale"][first - 1] == 1.0


def test_a_budget_in_seconds_needs_the_length_of_a_step():
    with pytest.raises(ValueError, match="seconds_per_step"):
        positions(max_steps=None, max_seconds=600.0)
    assert positions(max_steps=None, max_seconds=600.0, seconds_per_step=0.12)[-1] == Position(5000, 1.0, 600.0)


def test_planned_and_actual_lie_side_by_side():
    moments = positions(max_steps=4, max_seconds=None, points=5)
    ramp = {"momentum": MomentumRamp(start=0.0, end=0.8, steps=4)}
    table = planned_and_actual(ramp, moments, {"momentum": [0, 0.1, 0.4, 0.6, 0.8], "loss": [1]})
    assert table["momentum"] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8]) and table["momentum_actual"][1] == 0.1
    with pytest.raises(ValueError, match="recorded 1 times in 5 steps"):
        planned_and_actual(ramp, moments, {"momentum": [0.1]})


TURNS = [(name, turn) for name, schedule in ALL.items() for turn in schedule.turns]


def test_what_never_happened_is_said():
    missed = never_happened(TURNS, Position(1200, 0.66))
    assert missed == [
        "lr_scale: the warmdown reaches its floor at 92.5% of the budget, but training ended at 66.0%",
        "momentum: the momentum ramp ends at step 1500, but training ended at step 1200",
        "weight_decay: the weight decay taper starts at 70.0% of the budget, but training ended at 66.0%",
        "sequence_tokens: the stage of 3072 starts at 70.0% of the budget, but training ended at 66.0%",
    ]
    assert never_happened(TURNS, Position(4888, 1.0)) == []

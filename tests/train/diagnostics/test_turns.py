"""Every scheduled event is recorded when it comes, once, and what never came is named."""

import json
from functools import partial

import pytest

from pgolf.model.plan import Depth
from pgolf.optim.averaging import WarmdownAverage
from pgolf.optim.schedule import Position, Stages, StepWarmdown, Taper, Turn
from pgolf.train.early_stop import BehindReference
from tests.support import tiny_model
from tests.train.small import Spoken, train

GROWING = Stages(stages=[(16, 0.4), (64, 1.0)])


def came(events) -> dict[str, int]:
    """What came -> after how many steps."""
    return {event["what"]: event["step"] for event in events if event["event"] == "turn"}


def test_every_event_comes_at_its_step_and_says_so(tmp_path):
    found, console = [], Spoken()
    changes = {
        "context": GROWING,
        "weight_decay": Taper(start=0.7, final=0.5),
        "averaging": partial(WarmdownAverage, every=2, below=0.5),
    }
    _, progress, steps, _ = train(tmp_path, max_steps=10, on=found.append, console=console, **changes)
    assert came(found) == {
        "the plan looped starts": 4,
        "the warmdown starts": 5,
        "the stage of 64 starts": 5,  # a stage holds at its own end, which is step 4
        "the momentum ramp ends": 5,
        "the weight decay taper starts": 7,
        "the average takes in its first weights": 9,  # the first even step whose learning rate is below a half
        "the warmdown reaches its floor": 10,
    }
    assert [event["sequence_tokens"] for event in steps][4:6] == [16, 64]
    assert [one["what"] for one in progress.turns] == [e["what"] for e in found if e["event"] == "turn"]
    assert progress.missed == []
    assert sum("the plan looped starts (after step 4, 40.0% of the budget" in one for one in console.said) == 1
    assert json.dumps(progress.turns)


def test_what_never_came_is_named_once(tmp_path):
    console, late = Spoken(), StepWarmdown(steps=2, max_steps=10, max_seconds=None)
    empty = partial(WarmdownAverage, every=1, below=1.0)
    _, progress, _, _ = train(tmp_path, max_steps=3, schedule=late, console=console, loop_at=0.5)
    assert progress.missed == [
        "lr_scale: the warmdown starts at step 8, but training ended at step 3",
        "momentum: the momentum ramp ends at step 5, but training ended at step 3",
    ]
    assert [f"note: {one}" for one in progress.missed] == [one for one in console.said if one.startswith("note:")]
    _, progress, _, _ = train(tmp_path / "other", max_steps=6, averaging=empty)
    assert progress.missed == [] and any(one["setting"] == "averaging" for one in progress.turns)


def test_a_plan_without_recurrence_is_no_event(tmp_path):
    flat = tiny_model(depth=Depth(num_layers=4, loop_start=0, loop_end=0, num_loops=0, skips=True))
    _, progress, _, _ = train(tmp_path, model=flat, max_steps=6)
    assert not any(one["setting"] == "plan" for one in progress.turns) and progress.missed == []


def test_an_event_before_a_checkpoint_does_not_come_again(tmp_path):
    first, again = [], []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, max_steps=10, checkpoint_seconds=0.0, stop_after=7, on=first.append)
    _, progress, _, _ = train(tmp_path, max_steps=10, checkpoint_seconds=0.0, on=again.append)
    whole = train(tmp_path / "whole", max_steps=10)[1]
    assert came(first)["the plan looped starts"] == 4 and "the plan looped starts" not in came(again)
    assert [(one["what"], one["step"]) for one in progress.turns] == [(one["what"], one["step"]) for one in whole.turns]


def test_a_run_that_ends_early_says_when(tmp_path):
    path = tmp_path / "reference"
    path.mkdir()
    lines = [json.dumps({"event": "step", "step": step, "train_loss": 0.1}) for step in range(1, 31)]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    found, stop = [], BehindReference(reference=str(path), behind_nats=0.1, after_steps=5, window=5)
    with pytest.raises(Exception, match="stopped early at step 10"):
        train(tmp_path / "run", early_stop=stop, on=found.append)
    assert came(found)["the run is behind its reference and ends"] == 10


@pytest.mark.parametrize(
    ("turn", "position", "reached"),
    [
        (Turn("", "fraction", 0.4), Position(0, 0.4), True),
        (Turn("", "fraction", 0.4, beyond=True), Position(0, 0.4), False),
        (Turn("", "fraction", 0.4, beyond=True), Position(0, 0.41), True),
        (Turn("", "step", 8), Position(7, 1.0), False),
        (Turn("", "step", 8), Position(8, 0.0), True),
    ],
)
def test_a_turn_is_reached(turn, position, reached):
    assert turn.reached(position) is reached

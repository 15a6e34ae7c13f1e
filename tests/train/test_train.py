"""The training loop: learns, resumes to the bit, refuses what cannot be."""

import threading
from functools import partial

import pytest
import torch

from pgolf.data.loaders import CoprimeStrideLoader, SequentialLoader, ShuffledSequenceLoader
from pgolf.errors import UserError
from pgolf.model.plan import Depth
from pgolf.optim.schedule import Position
from pgolf.train.loop import Trainer
from tests.support import run_ranks, tiny_model
from tests.train.small import MIXED, SETTINGS, train


def test_training_learns_and_reports(tmp_path):
    averaged, progress, events, model = train(tmp_path)
    losses = [event["train_loss"] for event in events]
    assert losses[-1] < 0.5 * losses[0]
    assert (progress.step, progress.tokens, progress.looped_at) == (30, 30 * 512, 12)
    assert [event["plan"] for event in events] == ["plain"] * 12 + ["looped"] * 18
    assert events[0]["lr_scale"] == 1.0 and events[-1]["lr_scale"] < 0.15
    assert set(averaged) == set(model.state_dict())


def test_recurrence_may_come_in_steps():
    """Three plans, each from its own moment on; a plain number goes to the deepest one at once."""
    plans = ["plain", "loop1", "looped"]
    in_steps = Trainer(**{**SETTINGS, "loop_at": [0.2, 0.5]}).activation(plans)
    at_once = Trainer(**SETTINGS).activation(plans)
    moments = [0.0, 0.2, 0.4, 0.5, 1.0]
    assert [in_steps.at(Position(0, m)) for m in moments] == ["plain", "loop1", "loop1", "looped", "looped"]
    assert [at_once.at(Position(0, m)) for m in moments] == ["plain", "plain", "looped", "looped", "looped"]
    with pytest.raises(ValueError, match=r"has 2 values for the 1 plan\(s\) after the first: looped"):
        Trainer(**{**SETTINGS, "loop_at": [0.2, 0.5]}).activation(["plain", "looped"])


def test_training_walks_the_plans_of_a_ramp(tmp_path):
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=2, skips=True, ramp=True)
    _, progress, events, model = train(tmp_path, model=tiny_model(depth=depth), max_steps=5, loop_at=[0.2, 0.6])
    assert [event["plan"] for event in events] == ["plain", "loop1", "loop1", "looped", "looped"]
    assert (progress.looped_at, model.plan_name) == (3, "looped")


def test_average_is_the_recursion_over_the_weights(tmp_path):
    one_step, _, _, model = train(tmp_path, max_steps=1)
    start = tiny_model(seed=1).state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(one_step[name], 0.8 * start[name] + 0.2 * value)


def test_the_same_bits_again(tmp_path):
    first, _, events, _ = train(tmp_path)
    second, _, again, _ = train(tmp_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [event["train_loss"] for event in events] == [event["train_loss"] for event in again]


@pytest.mark.parametrize(("stop_after", "parts"), [(7, {}), (20, {}), (20, MIXED["parts"])])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path, stop_after, parts):
    """Stopped before and after recurrence starts, with a checkpoint after every step."""
    whole, _, events, _ = train(tmp_path / "whole", parts=parts)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", checkpoint_seconds=0.0, stop_after=stop_after, parts=parts)
    rest, progress, tail, _ = train(tmp_path / "cut", checkpoint_seconds=0.0, parts=parts)
    assert tail[0]["step"] == stop_after  # the step that was running when it stopped had no checkpoint yet
    assert progress.step == 30
    assert [event["train_loss"] for event in tail] == [event["train_loss"] for event in events[stop_after - 1 :]]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize(
    "loader",
    [ShuffledSequenceLoader, SequentialLoader, partial(CoprimeStrideLoader, ramp_batches=9)],
    ids=["shuffled_sequence", "sequential", "coprime_stride"],
)
def test_rows_that_are_not_packed_train_and_continue_to_the_same_bits(tmp_path, loader):
    whole, _, events, _ = train(tmp_path / "whole", loader=loader)
    losses = [event["train_loss"] for event in events]
    assert losses[-1] < 0.6 * losses[0]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", checkpoint_seconds=0.0, stop_after=9, loader=loader)
    rest, _, tail, _ = train(tmp_path / "cut", checkpoint_seconds=0.0, loader=loader)
    assert [event["train_loss"] for event in tail] == losses[8:]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_the_wait_for_data_is_logged_and_said(tmp_path):
    _, progress, events, _ = train(tmp_path)
    assert progress.data_seconds == pytest.approx(sum(event["data_seconds"] for event in events))
    assert 0.0 < progress.data_seconds < events[-1]["seconds"]


def test_training_leaves_no_thread_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop_after=2)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "no end"),
        ({"max_steps": 0}, "at least 1"),
        ({"max_seconds": float("nan")}, "positive and finite"),
        ({"max_seconds": float("inf")}, "positive and finite"),
        ({"checkpoint_seconds": -5.0}, "checkpoint_seconds=-5.0"),
        ({"batch_tokens": 500}, "batch_tokens=500 is not a multiple"),
        ({"sequence_tokens": 257}, "sequence_tokens=257"),
        ({"loader": SequentialLoader, "sequence_tokens": 60}, "256 is not a multiple of train.sequence_tokens=60"),
        ({"prefetch_batches": 0}, "prefetch_batches=0"),
        ({"loop_at": 2.0}, "loop_at=2.0"),
        ({"loop_at": [0.5, 0.3]}, "a list must rise"),
        ({"loop_at": []}, "a list must rise"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Trainer(**{**SETTINGS, **changes})


def test_batches_that_cannot_be_shared_out_are_refused():
    with pytest.raises(UserError, match="2 micro-batches a step cannot be shared by 3"):
        Trainer(**SETTINGS).micro_steps(3)


def test_fraction_is_that_of_the_nearer_limit():
    course = Trainer(**{**SETTINGS, "max_steps": 10, "max_seconds": 100.0}).course(["plain", "looped"])
    assert course.fraction(5, 10.0) == 0.5
    assert course.fraction(1, 90.0) == 0.9


CUT_PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pgolf import distributed
from pgolf.app.machine import leave
from pgolf.data.loaders import ShuffledSequenceLoader
from tests.train.small import train
group = distributed.join()
folder = Path(sys.argv[1])
settings = dict(group=group, max_steps=12, loader=ShuffledSequenceLoader)
whole, _, events, _ = train(folder / "whole", **settings)
try:
    train(folder / "cut", checkpoint_seconds=0.0, stop_after=6, **settings)
except KeyboardInterrupt:
    pass
rest, _, tail, _ = train(folder / "cut", checkpoint_seconds=0.0, **settings)
assert [event["train_loss"] for event in tail] == [event["train_loss"] for event in events[5:]]
assert all(torch.equal(whole[name], rest[name]) for name in whole)
if group.leads:
    (folder / "compared").write_text(str(len(tail)))
group.close()
leave(0)
"""


def test_two_processes_on_shards_of_their_own_continue_to_the_same_bits(tmp_path):
    """The shuffled loader's position is another on every rank: the checkpoint holds all of them."""
    program = tmp_path / "rank.py"
    program.write_text(CUT_PROGRAM)
    run_ranks(program, 2, tmp_path)
    assert (tmp_path / "compared").read_text() == "7"  # from step 6 on, where the cut run's last checkpoint was before

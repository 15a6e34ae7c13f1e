"""Training with MLPs of repeated visits: copies when recurrence comes, of weights and of averages."""

from functools import partial

import pytest
import torch
from torch import nn

from pgolf.model.repeats import OwnMlp
from pgolf.model.vectors import VirtualVectors
from pgolf.optim.averaging import ExponentialAverage, SeveralDecays, WarmdownAverage
from pgolf.optim.schedule import Position
from tests.support import tiny_model
from tests.train.small import train


def untied():
    return tiny_model(repeat_mlp=OwnMlp, vectors=VirtualVectors)


def test_the_first_looped_step_is_that_of_a_tied_model(tmp_path):
    tied = train(tmp_path / "tied", model=tiny_model(vectors=VirtualVectors), max_steps=8)[2]
    own = train(tmp_path / "own", model=untied(), max_steps=8)[2]
    losses = [[event["train_loss"] for event in events] for events in (tied, own)]
    looped = [event["plan"] for event in own].index("looped")
    assert losses[0][: looped + 1] == losses[1][: looped + 1]
    assert losses[0][looped + 1] != losses[1][looped + 1]


def test_without_recurrence_the_repeats_are_what_the_blocks_are(tmp_path):
    averaged, progress, _, model = train(tmp_path, model=untied(), max_steps=3, loop_at=1.0)
    assert progress.looped_at is None
    copies = untied().copies("plain")
    assert copies
    for target, source in copies.items():
        assert torch.equal(averaged[target], averaged[source])
        assert torch.equal(model.state_dict()[target], model.state_dict()[source])


@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stop_after):
    whole = train(tmp_path / "whole", model=untied(), max_steps=8)[0]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", model=untied(), max_steps=8, checkpoint_seconds=0.0, stop_after=stop_after)
    rest = train(tmp_path / "cut", model=untied(), max_steps=8, checkpoint_seconds=0.0)[0]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.parametrize(
    "averaging",
    [
        partial(ExponentialAverage, decay=0.5),
        partial(WarmdownAverage, every=1, below=1.0),
        partial(SeveralDecays, decays=[0.5, 0.9]),
    ],
)
def test_averages_of_copies_are_copies_of_averages(averaging):
    model = nn.ModuleDict({"base": nn.Linear(2, 2), "repeat": nn.Linear(2, 2)})
    average, copies = averaging(model), {"repeat.weight": "base.weight"}
    average.update(model, Position(1, 0.5), 0.1)
    average.adopt(copies)
    found = [one.weights() for one in average.averages.values()] if isinstance(average, SeveralDecays) else None
    for weights in found or [average.weights()]:
        assert torch.equal(weights["repeat.weight"], weights["base.weight"])
        assert not torch.equal(weights["repeat.bias"], weights["base.bias"])

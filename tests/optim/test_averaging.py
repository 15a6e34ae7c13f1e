"""Averages of the weights."""

import pytest
import torch
from torch import nn

from pgolf.optim.averaging import ExponentialAverage, LatestSnapshots, SeveralDecays, WarmdownAverage
from pgolf.optim.schedule import Position


def weights_of(step):
    return torch.full((2, 3), float(step**2))


def walk(model, average, steps, start=0, lr_scale=lambda step: 1.0):
    for step in range(start, steps):
        model.weight.data = weights_of(step + 1)
        average.update(model, Position(step + 1, (step + 1) / steps), lr_scale(step))


@pytest.fixture
def model():
    model = nn.Linear(3, 2, bias=False)
    model.weight.data = weights_of(0)
    return model


def test_several_decays_are_the_single_ones(model):
    several = SeveralDecays(model, decays=[0.5, 0.9])
    single = {f"{decay:g}": ExponentialAverage(model, decay=decay) for decay in (0.5, 0.9)}
    for average in (several, *single.values()):
        walk(model, average, 5)
    for decay, weights in several.candidates().items():
        assert torch.equal(weights["weight"], single[decay].weights()["weight"])


def test_the_decay_of_least_loss_is_chosen(model):
    several = SeveralDecays(model, decays=[0.5, 0.9, 0.99])
    walk(model, several, 5)
    with pytest.raises(ValueError, match="choose one of the decays 0.5, 0.9, 0.99 first"):
        several.weights()
    target = several.candidates()["0.9"]["weight"].clone()
    losses = several.choose(lambda weights: float((weights["weight"] - target).norm()))
    assert several.chosen == "0.9" and losses["0.9"] == 0.0 < min(losses["0.5"], losses["0.99"])
    assert torch.equal(several.weights()["weight"], target)
    with pytest.raises(ValueError, match="not a number for 0.5, 0.9, 0.99"):
        several.choose(lambda weights: float("nan"))


def test_the_warmdown_average_is_the_mean_of_its_turns(model):
    average = WarmdownAverage(model, every=3, below=0.5)
    walk(model, average, 12, lr_scale=lambda step: 1.0 - step / 12)  # below 0.5 from step 7 on
    assert average.count == 2
    torch.testing.assert_close(average.weights()["weight"], (weights_of(9) + weights_of(12)) / 2)


def test_an_empty_warmdown_average_is_refused(model):
    average = WarmdownAverage(model, every=50, below=0.5)
    walk(model, average, 12)
    with pytest.raises(ValueError, match="multiple of 50 .* below 0.5"):
        average.weights()


@pytest.mark.parametrize(
    "make",
    [
        lambda model: ExponentialAverage(model, decay=0.9),
        lambda model: WarmdownAverage(model, every=2, below=1.0),
        lambda model: SeveralDecays(model, decays=[0.5, 0.9]),
    ],
)
def test_a_state_continues_to_the_same_bits(make, model):
    def final(average):
        found = average.candidates() if isinstance(average, SeveralDecays) else {"": average.weights()}
        return {name: weights["weight"].clone() for name, weights in found.items()}

    whole, half, rest = make(model), make(model), make(model)
    walk(model, whole, 6, lr_scale=lambda step: 0.9)
    walk(model, half, 3, lr_scale=lambda step: 0.9)
    rest.load_state_dict(half.state_dict())
    walk(model, rest, 6, start=3, lr_scale=lambda step: 0.9)
    expected, got = final(whole), final(rest)
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_saved_averages_of_other_decays_are_refused(model):
    saved = SeveralDecays(model, decays=[0.5]).state_dict()
    with pytest.raises(ValueError, match="have decays 0.5; this run has 0.9"):
        SeveralDecays(model, decays=[0.9]).load_state_dict(saved)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: ExponentialAverage(model, decay=1.0), "decay=1.0"),
        (lambda model: WarmdownAverage(model, every=0, below=0.5), "every=0"),
        (lambda model: SeveralDecays(model, decays=[0.9, 0.9]), "different"),
        (lambda model: SeveralDecays(model, decays=[]), "at least one"),
    ],
)
def test_impossible_averages_are_refused(make, message, model):
    with pytest.raises(ValueError, match=message):
        make(model)


def test_the_latest_snapshots_are_averaged(model):
    """Every second step, the last three: 8, 10 and 12; a state in the middle goes on to the same."""
    average, resumed = (LatestSnapshots(model, every=2, count=3) for _ in range(2))
    walk(model, average, 7)
    state = {
        "snapshots": [{name: value.clone() for name, value in one.items()} for one in average.state_dict()["snapshots"]]
    }
    resumed.load_state_dict(state)
    for one in (average, resumed):
        walk(model, one, 13, start=7)
        torch.testing.assert_close(one.weights()["weight"], (weights_of(8) + weights_of(10) + weights_of(12)) / 3)
    with pytest.raises(ValueError, match="training has no 50 steps"):
        LatestSnapshots(model, every=50, count=2).weights()
    with pytest.raises(ValueError, match="count=0"):
        LatestSnapshots(model, every=1, count=0)


def test_snapshots_of_a_checkpoint_come_to_the_device_of_the_model(model):
    """A checkpoint is read to the CPU, and snapshots taken later are where the model is."""
    average = LatestSnapshots(model, every=1, count=3)
    walk(model, average, 2)
    resumed = LatestSnapshots(nn.Linear(3, 2, bias=False, device="meta"), every=1, count=3)
    resumed.load_state_dict(average.state_dict())
    assert [one["weight"].device.type for one in resumed.snapshots] == ["meta", "meta"]

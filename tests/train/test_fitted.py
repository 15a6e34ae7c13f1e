"""Training with frozen matrices, experts and their controller: alone, on two ranks, and continued."""

from functools import partial
from pathlib import Path

import pytest
import torch

from pgolf.model.activations import ASQU, XIELU
from pgolf.model.basis import LowRank, RandomRows
from pgolf.model.dropout import NormPercentile
from pgolf.model.phinta import PreHead
from pgolf.train.diagnostics.liveness import dead_parameters
from tests.support import ALONE, run_ranks, tiny_model
from tests.train import fitted
from tests.train.diagnostics.test_liveness import losing
from tests.train.small import losses, optimisers, train

BIAS = "blocks.0.mlp.router.router_bias"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process."""
    return fitted.made(tmp_path_factory.mktemp("alone"), ALONE)


def test_frozen_matrices_stay_and_the_controller_moves(alone):
    assert BIAS in alone["weights"] and alone["weights"][BIAS].any()
    assert not any("basis" in name or "seen" in name for name in alone["weights"])
    assert alone["losses"][-1] < alone["losses"][0]
    for event in alone["events"]:
        costs = sum(event[f"loss_experts_{name}"] for name in ("balance", "min_share", "max_spread"))
        assert event["objective"] == pytest.approx(event["train_loss"] + costs) and costs > 0


def test_two_ranks_train_like_one(alone, tmp_path):
    run_ranks(Path(fitted.__file__), 2, tmp_path, tmp_path / "out.pt")
    two = torch.load(tmp_path / "out.pt")
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, value in alone["weights"].items():
        # Muon makes directions of tiny gradients too, such as those of a factor beside one that has just left zero
        assert (value - two["weights"][name]).norm() <= 1e-3 * value.norm() + 1e-6, name


@pytest.mark.parametrize("stop_after", [3, 6])
def test_a_stopped_run_goes_on_to_the_same_bits(alone, tmp_path, stop_after):
    settings = {"max_steps": fitted.STEPS, "batch_tokens": 1024, "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, model=fitted.fitted(), stop_after=stop_after, **settings)
    rest, _, _, model = train(tmp_path, model=fitted.fitted(), **settings)
    assert all(torch.equal(alone["average"][name], rest[name]) for name in rest)
    assert torch.equal(model.state_dict()[BIAS], alone["weights"][BIAS])


def test_dropping_long_hidden_vectors_changes_training(tmp_path):
    plain, dropping = (
        losses(train(tmp_path / name, model=tiny_model(mlp_dropout=part), max_steps=3)[2])
        for name, part in {"plain": None, "dropping": NormPercentile(quantile=0.5)}.items()
    )
    assert plain[0] == dropping[0]  # the way back to the stream begins at zero
    assert plain[2] != dropping[2]


MODELS = {
    "experts, frozen matrices, adapters in blocks": fitted.fitted,
    "learned activation, factors, adapter before the head": lambda: tiny_model(
        mlp=partial(
            XIELU,
            multiple=2.0,
            alpha_positive=1.0,
            alpha_negative=0.5,
            beta_positive=0.1,
            beta_negative=0.4,
            trainable=True,
        ),
        basis=LowRank(rank=4, patterns=["blocks.*.mlp.*"]),
        phinta=PreHead(rank=4, init_scale=0.5, basis_gain=0.0),
    ),
    "learned negative branch, coefficients over random rows": lambda: tiny_model(
        mlp=partial(ASQU, multiple=2.0, negative_scale=0.25), basis=RandomRows(rank=4, patterns=["blocks.*.mlp.*"])
    ),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_every_parameter_learns(build):
    model = build()
    assert dead_parameters(model, optimisers(model), losing(model)) == []

"""Parameters that do not learn are reported once; those that wait for recurrence, or for a zero to move, are not."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pgolf.kernels.attend import sdpa
from pgolf.model.context import Context
from pgolf.model.gates import HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.lanes import TwoLane
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.repeats import OwnMlp
from pgolf.model.roles import constant
from pgolf.model.smear import SmearGate
from pgolf.model.vectors import VirtualVectors
from pgolf.optim.roles import RoleOptimizers
from pgolf.train.diagnostics.liveness import STEPS, dead_parameters, sentence
from tests.support import tiny_model
from tests.train.small import MUON, Spoken, optimisers, train


class Folded(LeakyReLUSquared):
    """An MLP with a factor that the forward multiplies by nothing, as a switch that was folded away."""

    def __init__(self, dim: int, *place: int) -> None:
        super().__init__(dim, *place, multiple=2.0, slope=0.5)
        self.declare("strength", (1,), "scalar", constant(1.0))

    def forward(self, n: Tensor, slot: int, context: Context) -> Tensor:
        return super().forward(n, slot, context) * (1.0 + 0.0 * self.strength)


class Unread(LeakyReLUSquared):
    """An MLP with a table that no forward reads."""

    def __init__(self, dim: int, *place: int) -> None:
        super().__init__(dim, *place, multiple=2.0, slope=0.5)
        self.declare("table", (3, dim), "scalar", constant(0.5))


def losing(model: GPT):
    """The loss of a fixed batch."""
    tokens = torch.randint(1, 64, (4, 33), generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        logits = model.logits(model(tokens[:, :-1], Context(sdpa)))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def full() -> GPT:
    """All that waits for something: recurrence with MLPs and vectors of its own, zero gates, lanes."""
    return tiny_model(
        gate=partial(HeadGate, width=12, scale=0.5, init_std=0.0),
        smear=partial(SmearGate, width=12, bos_id=1),
        lanes=partial(TwoLane, start_layer=3, final_lane="mean"),
        repeat_mlp=OwnMlp,
        vectors=VirtualVectors,
    )


def gated(model: nn.Module) -> RoleOptimizers:
    adam = partial(torch.optim.AdamW, lr=0.02)
    return RoleOptimizers(model, matrix=MUON, embedding=adam, scalar=adam, head=None, gate=adam)


def test_no_false_alarm_where_gradients_come_late():
    model = full()
    assert dead_parameters(model, gated(model), losing(model)) == []


def test_a_gradient_that_is_always_zero_is_found():
    model = tiny_model(mlp=Folded)
    found = dead_parameters(model, optimisers(model), losing(model))
    assert {one["parameter"] for one in found} == {f"blocks.{layer}.mlp.strength" for layer in range(4)}
    assert {(one["why"], one["step"]) for one in found} == {("gradient", STEPS)}
    assert sentence(found[0]) == (
        "the parameter blocks.0.mlp.strength does not learn: its gradient was zero in all of 10 steps (step 10)"
    )


def test_what_no_forward_reads_is_found_at_the_end():
    model = tiny_model(mlp=Unread)
    found = dead_parameters(model, optimisers(model), losing(model), length=4)
    assert {(one["parameter"], one["why"]) for one in found} == {
        (f"blocks.{layer}.mlp.table", "unreached") for layer in range(4)
    }


def test_a_parameter_that_no_step_moves_is_found_unless_it_is_frozen_on_purpose():
    model = tiny_model()
    adam, still = partial(torch.optim.AdamW, lr=0.02), partial(torch.optim.AdamW, lr=1e-30)
    optimizers = RoleOptimizers(model, matrix=MUON, embedding=adam, scalar=still, head=None, gate=None)
    starts_at_zero = {name for name, one in model.named_parameters() if not bool(one.all())}  # 0 + 1e-30 is another
    lost = set(optimizers.assignment["scalar"]) - starts_at_zero
    found = dead_parameters(model, optimizers, losing(model), length=4)
    assert {one["why"] for one in found} == {"update"}
    assert {one["parameter"] for one in found} == lost and len(lost) > 8
    frozen = partial(torch.optim.AdamW, lr=0.0)
    optimizers = RoleOptimizers(model, matrix=MUON, embedding=adam, scalar=frozen, head=None, gate=None)
    assert dead_parameters(model, optimizers, losing(model), length=4) == []


def test_a_run_reports_once_and_goes_on_to_the_same_bits(tmp_path):
    """Also when it is cut off after the verdict."""
    found, again, console = [], [], Spoken()
    with pytest.raises(KeyboardInterrupt):
        changes = {"checkpoint_seconds": 0.0, "stop_after": STEPS + 3, "console": console}
        train(tmp_path, model=tiny_model(mlp=Folded), on=found.append, **changes)
    averaged, progress, _, _ = train(tmp_path, model=tiny_model(mlp=Folded), on=again.append)
    dead = [event for event in found if event["event"] == "dead_parameter"]
    assert len(dead) == 4 == len(progress.dead) and not any(event["event"] == "dead_parameter" for event in again)
    assert sum(one.startswith("warning: the parameter blocks.") for one in console.said) == 4
    whole, _, _, _ = train(tmp_path / "whole", model=tiny_model(mlp=Folded))
    assert all(torch.equal(averaged[name], value) for name, value in whole.items())


def test_recurrence_that_comes_late_is_waited_for(tmp_path):
    model = tiny_model(repeat_mlp=OwnMlp)
    _, progress, _, _ = train(tmp_path, model=model, max_steps=40, loop_at=0.5)
    assert progress.looped_at == 20 and progress.dead == [] and progress.undecided == []
    _, progress, _, _ = train(tmp_path / "never", model=tiny_model(repeat_mlp=OwnMlp), max_steps=12, loop_at=1.0)
    assert {one["why"] for one in progress.dead} == {"unreached"}
    assert all(".repeats." in one["parameter"] for one in progress.dead)


def test_a_run_that_is_too_short_to_tell_says_nothing(tmp_path):
    _, progress, _, _ = train(tmp_path, model=tiny_model(mlp=Unread), max_steps=STEPS - 1)
    assert progress.dead == [] and progress.undecided is None

"""An optimiser that only counts, and the count of all optimisers' steps."""

import torch
from torch import nn

from pgolf.optim.tripwire import Tripwire, counted_steps
from pgolf.ttt.e2e import InnerSteps


def inner_steps(count: int) -> tuple[Tripwire, torch.Tensor, torch.Tensor]:
    """Inner steps with an optimiser that only counts, and a cost that must not be asked for when there are none."""
    wire, cost, asked = Tripwire(), torch.ones(1, 4), torch.full((1, 4), 2.0)

    def step(_: torch.Tensor) -> None:
        wire.zero_grad()
        wire.step()

    def again() -> torch.Tensor:
        assert count, "the cost was asked for without an inner step"
        return asked

    return wire, InnerSteps(steps=count).take(wire, step, again, cost), cost


def test_inner_steps_that_are_off_call_nothing() -> None:
    wire, given, cost = inner_steps(0)
    assert (wire.zero_grads, wire.steps) == (0, 0) and given is cost


def test_inner_steps_call_once_each() -> None:
    """With the usual step after them they are steps + 1, so one inner step is not the baseline, as a published comment
    has it."""
    wire, given, cost = inner_steps(3)
    assert (wire.zero_grads, wire.steps) == (3, 3) and not given.equal(cost)


def test_a_tripwire_changes_nothing() -> None:
    wire = Tripwire()
    parameter = wire.param_groups[0]["params"][0]
    parameter.grad = torch.ones(1)
    wire.step()
    assert parameter.item() == 0.0 and parameter.grad.item() == 1.0 and wire.steps == 1


def test_the_steps_of_every_optimiser_are_counted() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizers = [torch.optim.SGD([parameter], lr=0.1), torch.optim.Adam([parameter], lr=0.1)]
    parameter.grad = torch.ones(2)
    with counted_steps() as steps:
        for optimizer in optimizers:
            optimizer.step()
    optimizers[0].step()
    assert steps.count == 2

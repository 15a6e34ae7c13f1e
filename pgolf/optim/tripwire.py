"""Telling by its calls, not by its results, whether something trains."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Tripwire(torch.optim.Optimizer):
    """An optimiser that changes nothing and counts the calls of `zero_grad` and `step`.

    Given to a mechanism that is off, both counts stay 0 (PR 2059, for its inner steps): equal results alone would not
    show that a mechanism did nothing, and not the same twice.
    """

    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(1))], {"lr": 0.0})
        self.zero_grads = self.steps = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Count the call."""
        self.zero_grads += 1

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Count the call."""
        self.steps += 1


@dataclass
class Steps:
    """How often optimisers stepped."""

    count: int = 0


@contextlib.contextmanager
def counted_steps() -> Iterator[Steps]:
    """Count the steps that any optimiser of this process takes inside the block."""
    steps = Steps()

    def count(*_: Any) -> None:
        steps.count += 1

    hook = register_optimizer_step_pre_hook(count)
    try:
        yield steps
    finally:
        hook.remove()

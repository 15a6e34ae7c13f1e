"""Before the clock starts: what is compiled is compiled on tokens that mean nothing, and leaves no trace.

Published (PR 1530 and after): every shape once forward and backward, then optimiser steps under each plan, then
weights and optimiser state are put back.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.kernels.packing import build_cu_seqlens
from pgolf.model.gpt import GPT
from pgolf.optim.clip import Clip
from pgolf.optim.exchange import GradientExchange
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers

LossOfBatch = Callable[[Batch, int], Tensor]
Shape = tuple[str, int]  # plan, sequence length


class Warmup:
    """`steps` optimiser steps under every plan before training, and then everything as it was.

    momentum: `reset`; or `kept`, as published from PR 1530 on by mistake: where several processes shared Muon out, its
    momentum was not in what was put back. Raises ValueError when steps is negative.
    """

    def __init__(self, *, steps: int, momentum: Literal["reset", "kept"]) -> None:
        if steps < 0:
            raise ValueError(f"warm-up steps={steps} must not be negative")
        self.steps, self.momentum = steps, momentum


def shapes_once(
    model: GPT, optimizers: RoleOptimizers, loss: LossOfBatch, batches: Mapping[int, Batch], shapes: Iterable[Shape]
) -> None:
    """Forward and backward once for every (plan, sequence length), which is what compiles; gradients are dropped.

    batches: one for every length. No rank waits for another.
    """
    plan = model.plan_name
    try:
        for name, length in shapes:
            model.set_plan(name)
            loss(batches[length], length).backward()
    finally:
        optimizers.zero_grad()
        model.set_plan(plan)


def rehearse(
    model: GPT,
    optimizers: RoleOptimizers,
    clip: Clip,
    group: Group,
    loss: LossOfBatch,
    batches: Mapping[int, Batch],
    warmup: Warmup,
) -> None:
    """The optimiser steps of `warmup`, under every plan on the longest of `batches`; then weights, optimisers, plan and
    random state are what they were, but for the momentum where that is kept. Every rank calls this together."""
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    begun, random, plan = copy.deepcopy(optimizers.state_dict()), torch.get_rng_state(), model.plan_name
    exchange = GradientExchange(optimizers, group, copy.deepcopy(clip))
    length = max(batches)
    for name in model.plans:
        model.set_plan(name)
        for _ in range(warmup.steps):
            loss(batches[length], length).backward()
            exchange.average()
            optimizers.step()
            optimizers.zero_grad()
    kept = _momentum(optimizers) if warmup.momentum == "kept" else {}
    model.load_state_dict(weights)
    optimizers.load_state_dict({role: {**state, **kept.get(role, {})} for role, state in begun.items()})
    model.set_plan(plan)
    torch.set_rng_state(random)


def synthetic(rows: bool, tokens: int, lengths: Iterable[int], vocab_size: int, bucket: int) -> dict[int, Batch]:
    """A micro-batch of random tokens for every sequence length: `rows` of that length, or one packed row."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(vocab_size, (tokens + 1,), generator=generator)
    made = {}
    for length in lengths:
        whole = tokens // length * length if rows else tokens
        shape = (-1, length) if rows else (1, -1)
        boundaries = None if rows else build_cu_seqlens(torch.arange(0, tokens, length).numpy(), tokens, length, bucket)
        made[length] = Batch(drawn[:whole].view(shape), drawn[1 : whole + 1].view(shape), boundaries)
    return made


def _momentum(optimizers: RoleOptimizers) -> dict[str, dict[str, Any]]:
    """What Muon remembers, by role."""
    return {
        role: {"state": copy.deepcopy(optimizer.state_dict()["state"])}
        for role, optimizer in optimizers.optimizers.items()
        if isinstance(optimizer, Muon)
    }

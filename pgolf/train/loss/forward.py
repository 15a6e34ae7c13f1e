"""One forward pass as a loss reads it, and the plain loss: mean cross entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.model.context import Context, Walk
from pgolf.model.gpt import GPT

Loss = tuple[Tensor, dict[str, Tensor]]
"""What is minimised, and what it is made of: `cross_entropy`, the plain mean over tokens in nats, and what each further
term or part of the model adds to the objective. Nothing by name: the objective is the plain mean."""


@dataclass(frozen=True)
class Forward:
    """What a term of an objective may read: the model, its inputs and targets int64 [B, T], normed hidden states
    [B, T, dim], fp32 logits [B, T, vocab_size], and what the forward left."""

    model: GPT
    inputs: Tensor
    targets: Tensor
    hidden: Tensor
    logits: Tensor
    walk: Walk


def forward(model: GPT, inputs: Tensor, targets: Tensor, context: Context, wanted: frozenset[int]) -> Forward:
    """Walk the model with a walk of its own; wanted: blocks whose output is kept (see `Walk`)."""
    context = context.begun(inputs, wanted)
    assert context.walk is not None  # just begun
    with model.precision.autocast(inputs.device):
        hidden = model(inputs, context)
        logits = model.logits(hidden, context)
    return Forward(model, inputs, targets, hidden, logits, context.walk)


def loss_of(model: GPT, inputs: Tensor, targets: Tensor, context: Context) -> Loss:
    """Mean cross entropy in nats of rows [B, T] of tokens, and the costs of the model's parts; this is what is
    compiled where no objective is composed."""
    made = forward(model, inputs, targets, context, frozenset())
    nats = torch.nn.functional.cross_entropy(made.logits.flatten(0, 1), targets.flatten())
    return with_costs(nats, {"cross_entropy": nats}, made.walk) if made.walk.costs else (nats, {})


def with_costs(objective: Tensor, parts: dict[str, Tensor], walk: Walk) -> Loss:
    """The objective and its parts with what the model's parts add to it."""
    for cost in walk.costs.values():
        objective = objective + cost.float()
    return objective, {name: part.detach() for name, part in {**parts, **walk.costs}.items()}


def plain_of(loss: Loss) -> Tensor:
    """The plain mean cross entropy of a micro-batch, in nats."""
    objective, parts = loss
    return parts.get("cross_entropy", objective)

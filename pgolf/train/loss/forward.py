"""One forward pass as a loss reads it, and the plain loss: mean cross entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgolf.model.context import Context, Walk
from pgolf.model.gpt import GPT
from pgolf.model.head import SoftCap

Loss = tuple[Tensor, dict[str, Tensor]]
"""What is minimised, and what it is made of: `cross_entropy`, the plain mean over tokens in nats, and what each further
term or part of the model adds to the objective. Nothing by name: the objective is the plain mean."""


@dataclass(frozen=True)
class Forward:
    """What a term of an objective may read: the model, its inputs and targets int64 [B, T], normed hidden states
    [B, T, dim], scores [B, T, vocab_size] before the cap, and what the forward left.

    rows: cross entropy and logsumexp of the logits of every token, fp32 [B * T] each, where a fused kernel made them;
    capped: fp32 logits [B, T, vocab_size] where none did.
    """

    model: GPT
    inputs: Tensor
    targets: Tensor
    hidden: Tensor
    scores: Tensor
    walk: Walk
    rows: tuple[Tensor, Tensor] | None
    capped: Tensor | None

    @property
    def logits(self) -> Tensor:
        """fp32 [B, T, vocab_size]; a term that reads them makes them where a fused kernel did without."""
        return self.model.capped(self.scores) if self.capped is None else self.capped

    @property
    def mean_nats(self) -> Tensor:
        """Mean cross entropy of the tokens in nats."""
        if self.rows is not None:
            return self.rows[0].mean()
        return cross_entropy(self.logits.flatten(0, 1), self.targets.flatten())

    @property
    def nats(self) -> Tensor:
        """Cross entropy of every token in nats, fp32 [B * T]."""
        if self.rows is not None:
            return self.rows[0]
        return cross_entropy(self.logits.flatten(0, 1), self.targets.flatten(), reduction="none")

    @property
    def denominators(self) -> Tensor:
        """logsumexp of the logits of every token, fp32 [B * T]."""
        return self.rows[1] if self.rows is not None else torch.logsumexp(self.logits, dim=-1).flatten()


def forward(model: GPT, inputs: Tensor, targets: Tensor, context: Context, wanted: frozenset[int]) -> Forward:
    """Walk the model with a walk of its own; wanted: blocks whose output is kept (see `Walk`)."""
    context = context.begun(inputs, wanted)
    assert context.walk is not None  # just begun
    with model.precision.autocast(inputs.device):
        hidden = model(inputs, context)
        scores = model.scores(hidden, context)
        kernel, softcap = context.fused.cross_entropy, model.softcap
        if kernel is None or not (softcap is None or isinstance(softcap, SoftCap)):
            return Forward(model, inputs, targets, hidden, scores, context.walk, None, model.capped(scores))
        rows = kernel(scores.flatten(0, 1), targets.flatten(), None if softcap is None else softcap.cap)
    return Forward(model, inputs, targets, hidden, scores, context.walk, rows, None)


def loss_of(model: GPT, inputs: Tensor, targets: Tensor, context: Context) -> Loss:
    """Mean cross entropy in nats of rows [B, T] of tokens, and the costs of the model's parts; this is what is
    compiled where no objective is composed."""
    made = forward(model, inputs, targets, context, frozenset())
    nats = made.mean_nats
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

"""An objective composed of weighted or smoothed cross entropy and further terms.

Every term is a sum over things (tokens, rows, spans) divided by how many of them the whole step has, over all
micro-batches and ranks: a mean of the ranks' own means would be another loss on every number of ranks. So what is
counted is counted before the first forward of a step, and the ranks exchange the few counts. What a term draws at
random is drawn there too, outside what is compiled, and passed in as tensors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.roles import Part, initialise, stream
from pgolf.optim.schedule import Position, Turn
from pgolf.train.loss.byte_weights import ByteWeights
from pgolf.train.loss.forward import Forward, Loss, forward, with_costs

Facts = tuple[Tensor, ...]
TokenBytes = Callable[[], tuple[Sequence[int], Sequence[bool]]]
"""Gives the bytes of every id, with the space it may begin with, and which ids begin with one."""
Draw = Callable[[], torch.Generator]


class Term(Protocol):
    """A further term: coefficient * the mean over `parts` of sum / count."""

    parts: int
    wanted: frozenset[int]
    """Blocks whose output it reads (see `Walk`)."""

    @property
    def turns(self) -> Sequence[Turn]:
        """Where its coefficient changes its course."""
        ...

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Why it cannot be with sequences of these lengths, in sentences."""
        ...

    def heads(self, model: GPT) -> Part | None:
        """A part that only training has, or None. ValueError when the term does not fit the model."""
        ...

    def coefficient(self, position: Position) -> float:
        """What the term is multiplied by at `position`."""
        ...

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Facts, Sequence[float]]:
        """What the forward pass of a micro-batch is given, and its counts, one a part. draw: gives the random generator
        of this term, step and micro-batch."""
        ...

    def __call__(self, made: Forward, heads: Part | None, facts: Facts) -> Tensor:
        """The sums over a micro-batch, fp32 [parts]."""
        ...


class Given(NamedTuple):
    """What a micro-batch's loss is given besides its tokens.

    weights: fp32 [B, T] of the cross entropies; None: all 1. scales: fp32, what each sum is multiplied by, that of the
    cross entropy first. facts: of each term.
    """

    weights: Tensor | None
    scales: Tensor
    facts: tuple[Facts, ...]

    def to(self, device: torch.device) -> "Given":
        """The same on another device."""
        facts = tuple(tuple(one.to(device, non_blocking=True) for one in several) for several in self.facts)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return Given(weights, self.scales.to(device, non_blocking=True), facts)


class Objective:
    """Cross entropy, weighted and smoothed where asked for, plus `terms` by name.

    weights: of the tokens' cross entropies, which are then divided by the sum of the weights. label_smoothing: share of
    each target that is spread evenly over the vocabulary. Raises ValueError when that is not in [0, 1).
    """

    def __init__(
        self,
        *,
        weights: ByteWeights | None = None,
        label_smoothing: float = 0.0,
        terms: Mapping[str, Term] | None = None,
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"train.loss.label_smoothing={label_smoothing} must be at least 0 and below 1")
        self.weights, self.label_smoothing = weights, label_smoothing
        self.terms: dict[str, Term] = dict(terms or {})

    @property
    def wanted(self) -> frozenset[int]:
        """The blocks whose output a term reads."""
        return frozenset().union(*(term.wanted for term in self.terms.values()))

    @property
    def turns(self) -> list[tuple[str, Turn]]:
        """(setting, turn) of all terms."""
        return [(f"train.loss.terms.{name}", turn) for name, term in self.terms.items() for turn in term.turns]

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Why this cannot be with sequences of these lengths."""
        for name, term in self.terms.items():
            for sentence in term.refusals(lengths):
                yield f"train.loss.terms.{name}: {sentence}"

    def heads(self, model: GPT) -> dict[str, Part]:
        """The parts that only training has, by term. ValueError when a term does not fit the model."""
        found = {name: term.heads(model) for name, term in self.terms.items()}
        return {name: heads for name, heads in found.items() if heads is not None}

    def run(self, seed: int, token_bytes: TokenBytes | None) -> "Running":
        """The objective in a run. ValueError when it needs the bytes of tokens and there are none."""
        if self.weights is None:
            return Running(self, seed, None)
        if token_bytes is None:
            raise ValueError("train.loss.weights needs the bytes of the tokens: train on a prepared data set")
        return Running(self, seed, self.weights.table(*token_bytes()))


@dataclass
class Running:
    """An objective in a run. seed: of what its terms draw; token_weights: fp32 [vocab_size], None: all 1."""

    objective: Objective
    seed: int
    token_weights: Tensor | None

    def given(self, batches: Sequence[Batch], position: Position, group: Group) -> list[Given]:
        """What each micro-batch of this rank's step is given. Every rank of `group` calls it together.

        Micro-batch m of rank r is number m * world_size + r of the step, on any number of ranks.
        """
        terms = self.objective.terms
        weights = [None if self.token_weights is None else self.token_weights[batch.targets] for batch in batches]
        prepared: list[list[tuple[Facts, Sequence[float]]]] = []
        for index, batch in enumerate(batches):
            number = f"{position.step}/{index * group.world_size + group.rank}"
            draws = [partial(stream, self.seed, f"loss/{name}/{number}") for name in terms]
            prepared.append([term.prepare(batch, draw) for term, draw in zip(terms.values(), draws, strict=True)])
        counts = [
            [float(batch.targets.numel() if weight is None else weight.sum(dtype=torch.float64))]
            + [count for _, several in ready for count in several]
            for batch, weight, ready in zip(batches, weights, prepared, strict=True)
        ]
        total = torch.tensor(counts, dtype=torch.float64).sum(0)
        if group.world_size > 1:  # alone, nothing has to wait for the device
            total = group.sum_(total.to(group.device)).cpu()
        factors = [1.0]
        for term in terms.values():
            factors += [term.coefficient(position) / term.parts] * term.parts
        # the gradients of micro-batches and ranks are averaged, and the sums of a step are to be added
        wanted = torch.tensor(factors, dtype=torch.float64) * len(batches) * group.world_size
        scales = torch.where(total > 0.0, wanted / total.clamp_min(1e-300), 0.0).float()
        return [
            Given(weight, scales, tuple(facts for facts, _ in ready))
            for weight, ready in zip(weights, prepared, strict=True)
        ]

    def alone(self, batch: Batch) -> list[Given]:
        """What a micro-batch is given that is all of the first step."""
        return self.given([batch], Position(0, 0.0), Group(0, 1, torch.device("cpu")))

    def loss_of(self, model: GPT, inputs: Tensor, targets: Tensor, context: Context, given: Given) -> Loss:
        """The share of a micro-batch in the objective, times the micro-batches of the step; this is what is compiled.

        Autocast ends before the sums, which are fp32.
        """
        objective = self.objective
        made = forward(model, inputs, targets, context, objective.wanted)
        nats = smoothed = made.nats
        if objective.label_smoothing:
            logits, flat = made.logits.flatten(0, 1), targets.flatten()
            smoothed = torch.nn.functional.cross_entropy(
                logits, flat, reduction="none", label_smoothing=objective.label_smoothing
            )
        weighted = smoothed if given.weights is None else smoothed * given.weights.flatten()
        total, parts, first = weighted.sum() * given.scales[0], {}, 1
        for (name, term), facts in zip(objective.terms.items(), given.facts, strict=True):
            sums = term(made, attached(model).get(name), facts)
            parts[name] = (sums * given.scales[first : first + term.parts]).sum()
            total, first = total + parts[name], first + term.parts
        return with_costs(total, {"cross_entropy": nats.mean(), **parts}, made.walk)


PLACE = "training_only"
"""Where a model holds the parts that only training has."""


def attach(model: GPT, heads: Mapping[str, Part], seed: int) -> None:
    """Give a model parts that only training has: they have optimisers, averages and checkpoints like any other."""
    if heads:
        holder = torch.nn.Module()
        holder.add_module(PLACE, torch.nn.ModuleDict(dict(heads)))
        initialise(holder, seed)
        model.precision.apply(holder)
        model.add_module(PLACE, getattr(holder, PLACE))


def attached(model: torch.nn.Module) -> dict[str, Part]:
    """The parts that only training has, by the name of their term."""
    return dict(getattr(model, PLACE).items()) if hasattr(model, PLACE) else {}


def shed(model: GPT, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take these parts from the model again, and from `weights`: nothing of them is scored or stored."""
    if hasattr(model, PLACE):
        delattr(model, PLACE)
    return {name: value for name, value in weights.items() if not name.startswith(f"{PLACE}.")}

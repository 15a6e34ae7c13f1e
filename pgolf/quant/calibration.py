"""On which text the quantiser learns what the weights read, and by which processes; never on validation text."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgolf.console import Console
from pgolf.data.loaders import Batch, BatchShape, ShuffledSequenceLoader
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.model.roles import stream
from pgolf.quant.bigrams import BigramCounts, with_bigrams
from pgolf.quant.hessian import Calibration, collect_hessians, collect_row_moments

Ranks = Literal["all", "leader"]
Phase = Literal["calibrate", "generate"]
BatchOf = Callable[[int], Batch]
"""Gives the batch of a number; the numbers that it is asked for rise."""


@dataclass(frozen=True)
class Ground:
    """What calibration works with. shape: of a batch of training rows; seed: of what is drawn."""

    model: GPT
    attention: Attention
    train_files: Sequence[Path]
    shape: BatchShape
    seed: int
    group: Group
    console: Console


class Text(Protocol):
    """Where calibration text comes from.

    ranks: "all": the batches are shared out among the processes and what they saw is added up, so that the number of
    processes changes nothing but rounding; "leader": the first process does all of it, on its own share of the shards,
    as the published scripts do (each gathers, and the artifact of the first is kept). phase: under which name of the
    clock its seconds are counted.
    """

    ranks: Ranks
    phase: Phase

    def batches(self, training_batches: int) -> int:
        """How many batches there are, given the number of batches of training text."""
        ...

    def open(self, ground: Ground) -> BatchOf:
        """Ready to give batches."""
        ...


class TrainingText:
    """Shuffled rows of training text (PR 1394 and after), without document boundaries. Its seconds are training.

    ranks: see `Text`.
    """

    phase: Phase = "calibrate"

    def __init__(self, *, ranks: Ranks = "all") -> None:
        self.ranks: Ranks = ranks

    def batches(self, training_batches: int) -> int:
        """As many as are asked for."""
        return training_batches

    def open(self, ground: Ground) -> BatchOf:
        """The loader's batches; those of other processes are drawn and dropped."""
        world_size, rank = (1, 0) if self.ranks == "all" else (ground.group.world_size, ground.group.rank)
        loader = ShuffledSequenceLoader(ground.train_files, world_size, rank, ground.shape)
        drawn = itertools.count()

        def batch(number: int) -> Batch:
            while next(drawn) < number:
                loader.next()
            return loader.next()

        return batch


class SelfGenerated:
    """Text that the model itself writes (2026-03-25): first token uniform, the others drawn at `temperature`, a forward
    over all tokens so far for each. What is calibrated on reads all tokens but the last.

    sequences: of train.sequence_tokens each (published: 64, which took 197 s). rows: sequences written together.
    in_training_budget: whether its seconds count as training in the strict reading; it reads no training data, and the
    published run counted them nowhere. ranks: see `Text`.
    """

    def __init__(
        self, *, sequences: int, rows: int, temperature: float, in_training_budget: bool, ranks: Ranks = "all"
    ) -> None:
        if min(sequences, rows) < 1 or not temperature > 0.0:
            raise ValueError(
                f"sequences={sequences} and rows={rows} must be at least 1, temperature={temperature} positive"
            )
        self.sequences, self.rows, self.temperature = sequences, min(rows, sequences), temperature
        self.phase: Phase = "calibrate" if in_training_budget else "generate"
        self.ranks: Ranks = ranks

    def batches(self, training_batches: int) -> int:
        """Enough for all sequences; the last is filled."""
        return -(-self.sequences // self.rows)

    def open(self, ground: Ground) -> BatchOf:
        """Batches that are written when they are first asked for, each from a random stream of its own."""
        written: dict[int, Batch] = {}
        count = self.batches(0)

        def batch(number: int) -> Batch:
            number %= count
            if number not in written:
                written[number] = self._written(ground, stream(ground.seed, f"calibration/{number}"))
            return written[number]

        return batch

    @torch.no_grad()
    def _written(self, ground: Ground, generator: torch.Generator) -> Batch:
        model, length, context = ground.model, ground.shape.sequence_tokens, Context(ground.attention)
        rows = torch.randint(model.vocab_size, (self.rows, 1), generator=generator)
        with ground.console.task("write calibration text", length) as task:
            while rows.shape[1] < length:
                visible = rows.to(ground.group.device)
                with model.precision.autocast(ground.group.device):
                    logits = model.logits(model(visible, context)[:, -1:], context)[:, 0].float().cpu()
                drawn = torch.multinomial(torch.softmax(logits / self.temperature, dim=-1), 1, generator=generator)
                rows = torch.cat([rows, drawn], dim=1)
                task.update(rows.shape[1])
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), None)


class RandomTokens:
    """Tokens drawn uniformly: how much of what calibration gives is a matter of the text.

    in_training_budget, ranks: as in SelfGenerated.
    """

    def __init__(self, *, in_training_budget: bool, ranks: Ranks = "all") -> None:
        self.phase: Phase = "calibrate" if in_training_budget else "generate"
        self.ranks: Ranks = ranks

    def batches(self, training_batches: int) -> int:
        """As many as of training text."""
        return training_batches

    def open(self, ground: Ground) -> BatchOf:
        """Batches of the shape of training rows, each from a random stream of its own."""
        shape = (ground.shape.rows, ground.shape.sequence_tokens + 1)

        def batch(number: int) -> Batch:
            generator = stream(ground.seed, f"calibration/random/{number}")
            rows = torch.randint(ground.model.vocab_size, shape, generator=generator)
            return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), None)

        return batch


def calibrate(
    text: Text,
    training_batches: int,
    names: Sequence[str],
    with_moments: Sequence[str],
    ground: Ground,
    *,
    bigrams: bool = False,
) -> dict[str, Calibration]:
    """Hessians of the weights `names` over the batches of `text`, with the plan that the model walks; of those
    `with_moments` the moments of the output gradients too, over as many further batches.

    Those gradients are of tokens that the model itself predicts, drawn from its distribution: the mean square is then
    the curvature of the loss (Gauss-Newton), where the text's own tokens add what the model has yet to learn.

    bigrams: with the bigram score of every weight that multiplies something, over the same batches once more.

    Every process calls it. Empty where there is nothing to calibrate, or where another process does it alone.

    An embedding that is only looked up multiplies nothing: an error is as bad in any of its columns, which is what the
    identity says.
    """
    group, alone = ground.group, text.ranks == "leader"
    if not names or (alone and not group.leads):
        return {}
    sites = ground.model.calibration_sites()
    used = {name: sites[name] for name in names if name in sites}
    looked_up = [name for name in names if name not in sites]
    known = {name: Calibration(torch.eye(ground.model.get_parameter(name).shape[1])) for name in looked_up}
    losses = _losses(text, training_batches, alone, ground)
    add_up = None if alone or group.world_size == 1 else group.sum_
    if used:
        counts = BigramCounts(ground.model, ground.model.vocab_size, group.device)
        with counts if bigrams else contextlib.nullcontext():
            known |= collect_hessians(used, losses(0), ground.console, add_up=add_up)
        if bigrams:
            again = _losses(text, training_batches, alone, ground)(0)
            known |= with_bigrams(ground.model, used, again, counts, known, add_up=add_up)
    if not with_moments:
        return known
    weights: Mapping[str, Tensor] = {name: ground.model.get_parameter(name) for name in with_moments}
    return collect_row_moments(weights, losses(1), known, ground.console, add_up=add_up)


def _losses(
    text: Text, training_batches: int, alone: bool, ground: Ground
) -> Callable[[int], list[Callable[[], Tensor]]]:
    """This process's part of the batches of a round, each as a call that gives its mean loss: in round 0 that of the
    text's next tokens, in round 1, for moments, that of drawn ones."""
    group, give = ground.group, text.open(ground)
    count = text.batches(training_batches)
    if count < 1:
        raise UserError("calibration saw no batch: quant.calibration_batches must be 1 or more.")
    if not alone and count < group.world_size:
        ground.console.say(f"calibration: {group.world_size} batches instead of {count}, one for each process")
        count = group.world_size
    mine = range(count) if alone else range(group.rank, count, group.world_size)

    def loss(number: int) -> Tensor:
        batch, context, device = give(number), Context(ground.attention), group.device
        with ground.model.precision.autocast(device):
            logits = ground.model.logits(ground.model(batch.inputs.to(device), context), context)
        logits = logits.float().flatten(0, 1)
        targets = batch.targets.to(device).flatten()
        if number >= count:
            generator = torch.Generator(device).manual_seed(stream(ground.seed, f"targets/{number}").initial_seed())
            targets = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)[:, 0]
        return cross_entropy(logits, targets)

    return lambda turn: [functools.partial(loss, turn * count + one) for one in mine]

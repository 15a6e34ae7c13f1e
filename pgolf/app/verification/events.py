"""Which of its scheduled events a configuration comes to, and whether anything trains that should not.

A short training by the real loop, on random tokens, shows that events take effect; the schedules of the whole budget
show which can never come.
"""

import copy
import functools
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.console import Silent
from pgolf.data.shards import write_shard
from pgolf.data.validation import BOS_ID, UNK_ID, ValidationSet
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention, select
from pgolf.model.gpt import GPT
from pgolf.model.roles import stream
from pgolf.optim.schedule import Position
from pgolf.optim.tripwire import counted_steps
from pgolf.score.scorer import Scorer
from pgolf.train.clock import BudgetClock
from pgolf.ttt.fixed import Chunked, Sliding
from pgolf.ttt.strategy import Bench
from pgolf.workshop import Recipe

STEPS = 8
LARGEST = 4_000_000
"""Parameters of a model that takes a few steps on a CPU in seconds."""
SHARDS, SHARD_TOKENS, DOCUMENT_TOKENS = 3, 16_384, 300
DOCUMENTS, SCORED_TOKENS = 3, 70


@dataclass(frozen=True)
class Story:
    """What became of a configuration's events.

    never: sentences for those that its budget ends before; fired: those that the short training saw, with the step;
    late: sentences for those that it should have seen and did not. adapted: steps of any optimiser while a text was
    scored; still: whether there should be none. steps: of the short training, 0 where the model is too large for it.
    """

    never: list[str]
    steps: int = 0
    fired: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    adapted: int = 0
    still: bool = False

    def lines(self) -> list[str]:
        """The story for people."""
        if not self.steps:
            return [*self.problems(), f"more than {LARGEST:,} parameters: no short training here"]
        seen = "; ".join(self.fired) or "no event"
        scoring = f"optimiser steps while scoring: {self.adapted}" + (", as there should be" if self._quiet() else "")
        return [f"in {self.steps} steps: {seen}", scoring, *self.problems()]

    def problems(self) -> list[str]:
        """What is wrong, in sentences."""
        found = [f"never fires: {one}" for one in self.never] + [f"did not fire: {one}" for one in self.late]
        if self.still and self.adapted:
            found.append(f"an optimiser took {self.adapted} step(s) while a strategy without adaptation scored")
        return found

    def _quiet(self) -> bool:
        return self.still and self.adapted == 0


def story(recipe: Recipe) -> Story:
    """Train a few steps by the recipe, score a short text by its strategy, and say what came. UserError as training."""
    with torch.device("meta"):
        sketch = recipe.model(recipe.data.vocab_size, recipe.seed)
    never = _never(recipe, list(sketch.plans))
    if sum(parameter.numel() for parameter in sketch.parameters()) > LARGEST:
        return Story(never)
    attention = select("sdpa", torch.device("cpu"))[1]
    with tempfile.TemporaryDirectory() as workplace:
        model, fired, late = _train(recipe, attention, Path(workplace))
    never += _idle_terms(recipe)
    planned = {what.partition(" at ")[0] for what in never}
    late = [one for one in late if one.partition(" at ")[0] not in planned]
    still = isinstance(recipe.ttt, Chunked | Sliding)
    return Story(never, STEPS, fired, late, _steps_while_scoring(recipe, model, attention), still)


def _never(recipe: Recipe, plans: list[str]) -> list[str]:
    """What the whole budget ends before; a budget without a limit of steps comes to any step."""
    train = recipe.train
    steps = train.max_steps if train.max_steps is not None else math.inf
    last = Position(int(steps) if steps < math.inf else 2**62, 1.0, train.max_seconds or 0.0)
    return train.course(plans).never_happened(last)


def _idle_terms(recipe: Recipe) -> list[str]:
    """Sentences for the terms of the training loss that never have a part in it (a published start was read and never
    used)."""
    terms = {} if recipe.train.loss is None else recipe.train.loss.terms
    moments = [Position(step, step / STEPS) for step in range(STEPS)]
    return [
        f"train.loss.terms.{name}: its coefficient is 0 in all of {STEPS} steps"
        for name, term in terms.items()
        if not any(term.coefficient(moment) for moment in moments)
    ]


def _train(recipe: Recipe, attention: Attention, workplace: Path) -> tuple[GPT, list[str], list[str]]:
    """The model, the events that came, and sentences for those by parts of the budget that did not."""
    train = copy.copy(recipe.train)
    train.max_steps, train.max_seconds, train.validate_every, train.early_stop = STEPS, None, None, None
    train.compile, train.warmup, train.holdout_batches = False, None, 1
    if train.batch is None:
        train.batch_tokens = train.micro_batch_tokens
    model = recipe.model(recipe.data.vocab_size, recipe.seed)
    rounding = recipe.quant.training(model, lambda names, with_moments: {})
    if rounding is not None:
        rounding.min_steps = 1
    train.equip(model, recipe.seed)
    _, progress = train.run(
        model,
        recipe.optim(model),
        _RandomText(workplace, recipe.data.vocab_size),
        attention,
        workplace / "checkpoint",
        group=Group(0, 1, torch.device("cpu")),
        clock=BudgetClock(),
        console=Silent(),
        log=lambda event: None,
        rounding=rounding,
        seed=recipe.seed,
        token_bytes=functools.partial(_ones, recipe.data.vocab_size),
    )
    fired = [f"{one['setting']}: {one['what']} (step {one['step']})" for one in progress.turns]
    return model, fired, [one for one in progress.missed if "% of the budget" in one]


class _RandomText:
    """Training shards of random tokens."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.train_files = [folder / f"train_{index}.bin" for index in range(SHARDS)]
        for index, path in enumerate(self.train_files):
            write_shard(path, _random_tokens(vocab_size, SHARD_TOKENS, DOCUMENT_TOKENS, f"shard {index}"))


def _random_tokens(vocab_size: int, count: int, document: int, name: str) -> Any:
    """uint16 [count] of documents of `document` tokens, each behind a BOS."""
    generator = stream(0, f"verify/events/{name}")
    tokens = torch.randint(UNK_ID + 1, vocab_size, (count,), generator=generator).numpy().astype(np.uint16)
    tokens[::document] = BOS_ID
    return tokens


def _ones(vocab_size: int) -> tuple[list[int], list[bool]]:
    """Bytes of every id and whether it begins with a space: random tokens stand for nothing."""
    return [1] * vocab_size, [False] * vocab_size


def _steps_while_scoring(recipe: Recipe, model: GPT, attention: Attention) -> int:
    """Steps of any optimiser while the recipe's strategy scores a few random documents."""
    tokens = _random_tokens(recipe.data.vocab_size, DOCUMENTS * SCORED_TOKENS, SCORED_TOKENS, "scored")
    starts = np.arange(DOCUMENTS) * SCORED_TOKENS
    token_bytes = (tokens != BOS_ID).astype(np.int32)
    lengths = np.full(DOCUMENTS, SCORED_TOKENS - 1, np.int64)
    text = ValidationSet(tokens, token_bytes, starts, lengths, [f"random {index}" for index in range(DOCUMENTS)])
    shrink = getattr(recipe.ttt, "miniature", None)
    strategy = shrink(DOCUMENTS)[0] if shrink is not None else recipe.ttt
    model.set_plan("looped")
    group = Group(0, 1, torch.device("cpu"))
    with counted_steps() as steps:
        try:
            strategy.run(model.eval(), Scorer(text, group), Bench(recipe.seed, attention, Silent()))
        except UserError as error:
            raise UserError(f"scoring random documents: {error}") from error
    return steps.count

"""Training settings that cannot be, in sentences, before any work."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgolf.train.batches import gives_whole_rows

if TYPE_CHECKING:
    from pgolf.train.loop import Trainer


def refuse_impossible(train: "Trainer") -> None:
    """Raise ValueError with the first reason why this cannot be trained with."""
    reason = next(_reasons(train), None)
    if reason is not None:
        raise ValueError(reason)


def _reasons(train: "Trainer") -> Iterator[str]:
    if train.max_steps is None and train.max_seconds is None:
        yield "training has no end: set train.max_steps or train.max_seconds"
    if (train.max_steps is not None and train.max_steps < 1) or (
        train.max_seconds is not None and not 0 < train.max_seconds < math.inf
    ):
        yield "train.max_steps must be at least 1 and train.max_seconds positive and finite"
    if not train.checkpoint_seconds >= 0.0:
        yield f"train.checkpoint_seconds={train.checkpoint_seconds} must not be negative (0: after every step)"
    yield from _batches(train)
    moments = train.loop_at if isinstance(train.loop_at, list) else [train.loop_at]
    if not moments or sorted(set(moments)) != moments or not 0.0 <= moments[0] <= moments[-1] <= 1.0:
        yield (
            f"train.loop_at={train.loop_at} must lie between 0 and 1 (the part of the budget before recurrence), and a "
            "list must rise"
        )
    for name in ("prefetch_batches", "holdout_batches", "checkpoints_kept", "validate_every"):
        if (value := getattr(train, name)) is not None and value < 1:
            yield f"train.{name}={value} must be at least 1"
    if train.rewarmup_steps < 0:
        yield f"train.rewarmup_steps={train.rewarmup_steps} must not be negative"
    if train.loss is not None:
        yield from train.loss.refusals(sequence_lengths(train))


def _batches(train: "Trainer") -> Iterator[str]:
    micro, sequence = train.micro_batch_tokens, train.sequence_tokens
    for tokens in batch_sizes(train):
        if tokens % micro:
            yield f"train.batch_tokens={tokens} is not a multiple of train.micro_batch_tokens={micro}"
    if not 1 < sequence <= micro:
        yield f"train.sequence_tokens={sequence} must be 2 to micro_batch_tokens={micro}"
    if gives_whole_rows(train.loader) and micro % sequence:
        yield (
            f"train.micro_batch_tokens={micro} is not a multiple of train.sequence_tokens={sequence}, "
            "and this train.loader gives whole rows"
        )
    if train.batch is not None and max(batch_sizes(train)) != train.batch_tokens:
        yield f"the largest of train.batch.stages={train.batch.stages} must be train.batch_tokens={train.batch_tokens}"
    if train.context is None:
        if train.rewarmup_steps:
            yield f"train.rewarmup_steps={train.rewarmup_steps} follows changes of train.context, and there is none"
        return
    lengths = sequence_lengths(train)
    if max(lengths) != sequence or min(lengths) < 2:
        yield f"train.context.stages={train.context.stages} must be 2 to train.sequence_tokens={sequence} and reach it"
    if gives_whole_rows(train.loader) and (odd := [length for length in lengths if sequence % length]):
        yield f"a row of {sequence} tokens cannot be cut into rows of {odd[0]} (train.context.stages)"


def batch_sizes(train: "Trainer") -> list[int]:
    """The tokens of a step, in every stage."""
    return [train.batch_tokens] if train.batch is None else [value for value, _ in train.batch.stages]


def sequence_lengths(train: "Trainer") -> list[int]:
    """The sequence lengths of all stages, each once, shortest first."""
    return sorted({train.sequence_tokens} if train.context is None else {value for value, _ in train.context.stages})

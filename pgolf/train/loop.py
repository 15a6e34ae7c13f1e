"""The training loop: read it to know what one step does."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.data.dataset import Dataset
from pgolf.data.loaders import Batch, BatchShape, Loader, Prefetch
from pgolf.data.loaders.batch import MakeLoader
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention
from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.optim.averaging import ExponentialAverage
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import Activation, Position
from pgolf.train import checkpoint
from pgolf.train.clock import BudgetClock


@dataclass
class Progress:
    """Where training stands. `data_seconds`: how long it has waited for batches."""

    step: int = 0
    tokens: int = 0
    data_seconds: float = 0.0
    looped_at: int | None = None


class Trainer:
    """Trains a model for `max_steps` steps or `max_seconds` seconds, whichever ends first.

    batch_tokens: tokens of one optimiser step over all ranks; micro_batch_tokens: tokens one forward sees;
    sequence_tokens: longest document piece, or length of a row. loader: made as loader(files, world_size, rank, shape),
    see pgolf.data.loaders; prefetch_batches: micro-batches drawn ahead of the step that uses them. loop_at: part of the
    budget at which the looped plan takes over; a list gives one for each plan after the first (model.depth.ramp).
    clip_norm: global L2 norm of the averaged gradient. schedule, momentum: see pgolf.optim.schedule. averaging: made
    as averaging(model). checkpoint_seconds: seconds between checkpoints. max_seconds=None with max_steps gives the
    same bits again on the same machine; a budget in seconds does not. Raises ValueError when there is no budget or
    the batch cannot be cut into micro-batches.
    """

    def __init__(
        self,
        *,
        max_steps: int | None,
        max_seconds: float | None,
        batch_tokens: int,
        micro_batch_tokens: int,
        sequence_tokens: int,
        loader: MakeLoader,
        prefetch_batches: int,
        loop_at: float | list[float],
        clip_norm: float,
        schedule: Callable[[float], float],
        momentum: Callable[[int], float],
        averaging: Callable[[GPT], ExponentialAverage],
        checkpoint_seconds: float,
    ) -> None:
        if max_steps is None and max_seconds is None:
            raise ValueError("training has no end: set train.max_steps or train.max_seconds")
        if (max_steps is not None and max_steps < 1) or (max_seconds is not None and max_seconds <= 0):
            raise ValueError("train.max_steps must be at least 1 and train.max_seconds positive")
        if batch_tokens % micro_batch_tokens:
            raise ValueError(
                f"train.batch_tokens={batch_tokens} is not a multiple of train.micro_batch_tokens={micro_batch_tokens}"
            )
        if not 1 < sequence_tokens <= micro_batch_tokens:
            raise ValueError(
                f"train.sequence_tokens={sequence_tokens} must be 2 to micro_batch_tokens={micro_batch_tokens}"
            )
        if prefetch_batches < 1:
            raise ValueError(f"train.prefetch_batches={prefetch_batches} must be at least 1")
        if _gives_whole_rows(loader) and micro_batch_tokens % sequence_tokens:
            raise ValueError(
                f"train.micro_batch_tokens={micro_batch_tokens} is not a multiple of "
                f"train.sequence_tokens={sequence_tokens}, and this train.loader gives whole rows"
            )
        moments = loop_at if isinstance(loop_at, list) else [loop_at]
        if not moments or sorted(set(moments)) != moments or not 0.0 <= moments[0] <= moments[-1] <= 1.0:
            raise ValueError(
                f"train.loop_at={loop_at} must lie between 0 and 1 (the part of the budget before recurrence), and a "
                "list must rise"
            )
        if clip_norm <= 0.0:
            raise ValueError(f"train.clip_norm={clip_norm} must be positive")
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.batch_tokens, self.micro_batch_tokens = batch_tokens, micro_batch_tokens
        self.sequence_tokens, self.loop_at, self.clip_norm = sequence_tokens, loop_at, clip_norm
        self.schedule, self.momentum, self.averaging = schedule, momentum, averaging
        self.loader, self.prefetch_batches = loader, prefetch_batches
        self.checkpoint_seconds = checkpoint_seconds

    def fraction(self, step: int, seconds: float) -> float:
        """The elapsed part of the budget, by whichever limit is nearer."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_seconds = seconds / self.max_seconds if self.max_seconds else 0.0
        return max(by_steps, by_seconds)

    def run(
        self,
        model: GPT,
        optimizers: RoleOptimizers,
        dataset: Dataset,
        attention: Attention,
        directory: Path,
        *,
        group: Group,
        clock: BudgetClock,
        console: Console,
        log: Callable[[dict[str, Any]], None],
    ) -> tuple[dict[str, Tensor], Progress]:
        """Train `model` in place; returns the averaged weights and where training ended.

        Continues from `directory`/state.pgolf when there is one, bit for bit on a CPU.
        """
        micro_steps, activation = self.micro_steps(group.world_size), self.activation(list(model.plans))
        loader = self.batches(dataset, group)
        average = self.averaging(model)
        progress = Progress()
        state_path = directory / "state.pgolf"
        if state_path.exists():
            state = checkpoint.load(state_path)
            if (processes := len(state["loaders"])) != group.world_size:
                raise UserError(
                    f"{state_path} was written by {processes} process(es) and this run has {group.world_size}: "
                    f"continue with launch.nproc={processes}, or delete it to train again from step 0."
                )
            _restore(state, group.rank, model, optimizers, average, loader, progress, clock)
            console.say(f"continuing from step {progress.step}: {state_path}")
        saved_at = clock.elapsed("train")
        with loader, clock.phase("train"), console.task("train", self.max_steps) as task:
            while (fraction := self._fraction_now(progress, clock, group)) < 1.0:
                model.set_plan(activation.at(Position(progress.step, fraction)))
                if model.plan_name == "looped" and progress.looped_at is None:
                    progress.looped_at = progress.step
                lr_scale, momentum = self.schedule(fraction), self.momentum(progress.step)
                optimizers.schedule(lr_scale, momentum)
                batches = _Timed(loader)
                loss, grad_norm = self._step(model, optimizers, batches, micro_steps, attention, group)
                average.update(model)
                progress.step += 1
                progress.tokens += self.batch_tokens
                progress.data_seconds += batches.seconds
                seconds = clock.elapsed("train")
                log(
                    {
                        "event": "step",
                        "step": progress.step,
                        "train_loss": loss,
                        "lr_scale": lr_scale,
                        "momentum": momentum,
                        "plan": model.plan_name,
                        "grad_norm": grad_norm,
                        "tokens": progress.tokens,
                        "seconds": seconds,
                        "data_seconds": batches.seconds,
                    }
                )
                task.update(progress.step, loss=loss, tokens_per_second=progress.tokens / max(seconds, 1e-9))
                if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                    raise UserError(
                        f"the training loss became {loss} and the gradient norm {grad_norm} at step {progress.step}: "
                        "lower optim.matrix.lr or train.clip_norm. "
                        f"The last good state is {state_path if state_path.exists() else 'not there yet'}."
                    )
                if group.from_leader(seconds) - saved_at >= self.checkpoint_seconds:
                    saved_at = group.from_leader(seconds)
                    positions = group.gather(loader.state_dict())
                    if group.leads:
                        checkpoint.save(state_path, _state(model, optimizers, average, positions, progress, seconds))
        share = progress.data_seconds / max(clock.elapsed("train"), 1e-9)
        console.say(f"training waited {progress.data_seconds:.2f} s for its data ({share:.2%} of its time)")
        model.set_plan("looped")
        return average.state_dict(), progress

    def activation(self, plans: Sequence[str]) -> Activation:
        """When each of a model's plans takes over; `plans` names them in order, the last one is "looped".

        Raises ValueError when loop_at is a list of another length than the plans after the first.
        """
        if not isinstance(self.loop_at, list):
            return Activation(first=plans[0], starts={plans[-1]: self.loop_at})
        if len(self.loop_at) != len(plans) - 1:
            raise ValueError(
                f"train.loop_at={self.loop_at} has {len(self.loop_at)} values for the {len(plans) - 1} plan(s) after "
                f"the first: {', '.join(plans[1:])}"
            )
        return Activation(first=plans[0], starts=dict(zip(plans[1:], self.loop_at, strict=True)))

    def micro_steps(self, world_size: int) -> int:
        """Micro-batches each rank runs per optimiser step. Raises UserError when they cannot be shared out evenly."""
        total = self.batch_tokens // self.micro_batch_tokens
        if total % world_size:
            raise UserError(
                f"{total} micro-batches a step cannot be shared by {world_size} processes: "
                "change launch.nproc, train.batch_tokens or train.micro_batch_tokens."
            )
        return total // world_size

    def batches(self, dataset: Dataset, group: Group) -> Prefetch:
        """The training batches of this rank, drawn ahead of the steps that use them."""
        shape = BatchShape(self.micro_batch_tokens, self.sequence_tokens, self.batch_tokens // self.micro_batch_tokens)
        loader = self.loader(dataset.train_files, group.world_size, group.rank, shape)
        return Prefetch(loader, depth=self.prefetch_batches, pin=group.device.type == "cuda")

    def _fraction_now(self, progress: Progress, clock: BudgetClock, group: Group) -> float:
        seconds = group.from_leader(clock.elapsed("train")) if self.max_seconds else 0.0
        return self.fraction(progress.step, seconds)

    def _step(
        self,
        model: GPT,
        optimizers: RoleOptimizers,
        batches: "_Timed",
        micro_steps: int,
        attention: Attention,
        group: Group,
    ) -> tuple[float, float]:
        optimizers.zero_grad()
        total = torch.zeros((), device=group.device)
        for _ in range(micro_steps):
            loss = batch_loss(model, batches.next(), attention, group.device, self.sequence_tokens) / micro_steps
            loss.backward()
            total += loss.detach()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        group.mean_([total, *gradients])
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        mean_loss, grad_norm = float(total), float(norm)
        if math.isfinite(mean_loss) and math.isfinite(grad_norm):
            optimizers.step()  # weights are never updated by what is not a number
        return mean_loss, grad_norm


def batch_loss(model: GPT, batch: Batch, attention: Attention, device: torch.device, longest: int) -> Tensor:
    """Mean cross entropy in nats of one micro-batch; packed documents, and rows, do not see each other. longest: tokens
    of the longest piece that the loader gives, a constant of the run: what depends on it is compiled once."""
    packing = None
    if batch.cu_seqlens is not None:
        packing = Packing.from_cu_seqlens(batch.cu_seqlens, longest).to(device)
    context = Context(attention, packing)
    with model.precision.autocast(device):
        hidden = model(batch.inputs.to(device, non_blocking=True), context)
        logits = model.logits(hidden, context)
    targets = batch.targets.to(device, non_blocking=True)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class _Timed:
    """Batches of one step, and the seconds spent waiting for them."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.seconds = loader, 0.0

    def next(self) -> Batch:
        """The loader's next batch."""
        begun = time.perf_counter()
        batch = self.loader.next()
        self.seconds += time.perf_counter() - begun
        return batch


def _gives_whole_rows(loader: MakeLoader) -> bool:
    """Whether the loader that this factory makes cuts a micro-batch into rows of sequence_tokens."""
    made = loader.func if isinstance(loader, functools.partial) else loader
    return bool(getattr(made, "whole_rows", False))


def _state(
    model: GPT,
    optimizers: RoleOptimizers,
    average: ExponentialAverage,
    positions: list[dict[str, Any]],
    progress: Progress,
    seconds: float,
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "average": average.state_dict(),
        "loaders": positions,  # by rank
        "progress": vars(progress),
        "train_seconds": seconds,
        "plan": model.plan_name,
    }


def _restore(
    state: dict[str, Any],
    rank: int,
    model: GPT,
    optimizers: RoleOptimizers,
    average: ExponentialAverage,
    loader: Loader,
    progress: Progress,
    clock: BudgetClock,
) -> None:
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    average.load_state_dict(state["average"])
    loader.load_state_dict(state["loaders"][rank])
    vars(progress).update(state["progress"])
    clock.seconds["train"] = state["train_seconds"]
    model.set_plan(state["plan"])

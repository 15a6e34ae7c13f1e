"""The training loop: what it is made of. `steps` says what one step does."""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pgolf.console import Console
from pgolf.data.loaders import BatchShape, Prefetch
from pgolf.data.loaders.batch import MakeLoader, TrainFiles
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.kernels.attend import Attention
from pgolf.kernels.fused.kernels import UNFUSED, Fused
from pgolf.model.gpt import GPT
from pgolf.optim.averaging import Averaging, Weights
from pgolf.optim.clip import Clip
from pgolf.optim.exchange import GradientExchange
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import Activation, Schedule, Stages
from pgolf.train import interrupts
from pgolf.train.batches import batch_loss, gives_whole_rows
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.clock import BudgetClock
from pgolf.train.course import Course, constant_or, rewarmed
from pgolf.train.diagnostics.diagnostic import Diagnostic
from pgolf.train.diagnostics.watch import Watch
from pgolf.train.early_stop import BehindReference
from pgolf.train.fusing import put_to_use
from pgolf.train.loss.forward import Loss
from pgolf.train.loss.objective import Objective, Running, TokenBytes, attach, shed
from pgolf.train.prepared import prepared_loss
from pgolf.train.recompiles import Recompiles
from pgolf.train.refusals import batch_sizes, refuse_impossible
from pgolf.train.rounding import Rounding, Switch, planned, refuse_few_steps
from pgolf.train.state import Progress, Session
from pgolf.train.steps import Steps
from pgolf.train.warmup import Warmup


class Trainer:
    """Trains a model for `max_steps` steps or `max_seconds` seconds, whichever ends first.

    batch_tokens: tokens of one optimiser step over all ranks; micro_batch_tokens: tokens one forward sees;
    sequence_tokens: longest document piece, or length of a row. batch, context: the first and the last of these in
    stages; after a change of the latter, learning rates rise anew over rewarmup_steps.
    loader: made as loader(files, world_size, rank, shape), see pgolf.data.loaders; prefetch_batches: micro-batches
    drawn ahead of the step that uses them.
    loop_at: part of the budget at which the looped plan takes over; a list gives one for each plan after the first
    (model.depth.ramp). schedule, momentum, weight_decay (of matrices): see pgolf.optim.schedule.
    loss: what is minimised, for which the model has to be `equip`ped; None: plain cross entropy.
    clip: see pgolf.optim.clip. averaging: made as averaging(model); holdout_batches: micro-batches of a rank, of
    training text not yet used, by which the best of several averages is chosen.
    checkpoint_seconds: seconds between checkpoints, of which the last checkpoints_kept stay.
    compile: torch.compile the loss; "auto": on a GPU, and it says so; warmup: optimiser steps before the first.
    validate_every: steps between validations, which no budget counts. early_stop: ends a run that falls behind another.
    diagnostics: what is measured of the model besides what every run records (pgolf.train.diagnostics).

    max_seconds=None with max_steps gives the same bits again on the same machine; a budget in seconds does not.
    Raises ValueError for what cannot be.
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
        clip: Clip,
        schedule: Schedule,
        momentum: Schedule,
        averaging: Callable[[GPT], Averaging],
        checkpoint_seconds: float,
        weight_decay: Schedule | None = None,
        batch: Stages | None = None,
        context: Stages | None = None,
        rewarmup_steps: int = 0,
        holdout_batches: int = 8,
        checkpoints_kept: int = 2,
        compile: bool | Literal["auto"] = "auto",
        warmup: Warmup | None = None,
        validate_every: int | None = None,
        early_stop: BehindReference | None = None,
        diagnostics: Diagnostic | None = None,
        loss: Objective | None = None,
    ) -> None:
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.batch_tokens, self.micro_batch_tokens = batch_tokens, micro_batch_tokens
        self.sequence_tokens, self.loop_at, self.clip = sequence_tokens, loop_at, clip
        self.schedule, self.momentum, self.weight_decay = schedule, momentum, weight_decay
        self.averaging, self.holdout_batches = averaging, holdout_batches
        self.batch, self.context, self.rewarmup_steps = batch, context, rewarmup_steps
        self.loader, self.prefetch_batches = loader, prefetch_batches
        self.checkpoint_seconds, self.checkpoints_kept = checkpoint_seconds, checkpoints_kept
        self.compile, self.warmup, self.validate_every = compile, warmup, validate_every
        self.early_stop, self.diagnostics, self.loss = early_stop, diagnostics, loss
        refuse_impossible(self)

    def run(
        self,
        model: GPT,
        optimizers: RoleOptimizers,
        dataset: TrainFiles,
        attention: Attention,
        directory: Path,
        *,
        group: Group,
        clock: BudgetClock,
        console: Console,
        log: Callable[[dict[str, Any]], None],
        validate: Callable[[], dict[str, float]] | None = None,
        rounding: Rounding | None = None,
        seed: int = 0,
        token_bytes: TokenBytes | None = None,
        fused: Fused = UNFUSED,
    ) -> tuple[Weights, Progress]:
        """Train `model` in place; returns the averaged weights and where training ended.

        Continues from the newest state in `directory` that is whole, bit for bit on a CPU. validate: scores the model
        as it is. rounding: of the weights, near the end. seed: of what the loss draws; token_bytes: of every id, for a
        loss that is weighted by them. fused: kernels for steps. Raises interrupts.Interrupted after SIGINT or SIGTERM,
        once the state of the last step is saved.
        """
        micro_steps, course = self.micro_steps(group.world_size), self.course(list(model.plans))
        self.refuse_rounding(rounding, course)
        for remark in optimizers.shard(group):
            console.say(remark)
        clip, loader = copy.deepcopy(self.clip), self.batches(dataset, group)
        progress = Progress()
        session = Session(model, optimizers, self.averaging(model), clip, loader, progress, rounding)
        running = None if self.loss is None else self.loss.run(seed, token_bytes)
        with clock.phase("compile"):
            for remark in put_to_use(fused, model, optimizers):
                console.say(remark)
            loss = self._prepared_loss(session, attention, group, console, running, fused)
        recompiles = Recompiles(progress, console, log)
        watch = Watch(
            session,
            course,
            self.diagnostics,
            recompiles.uncounted(lambda batch, longest: batch_loss(model, batch, attention, group.device, longest)[0]),
            group,
            clock,
            console,
            log,
            self.early_stop is not None,
            rounding is not None,
        )
        steps = Steps(
            course,
            session,
            GradientExchange(optimizers, group, clip),
            Checkpoints(directory, keep=self.checkpoints_kept, background=group.device.type == "cuda" or None),
            micro_steps,
            loss,
            self.context is not None,
            watch,
            group,
            clock,
            console,
            log,
            None if rounding is None else Switch(rounding, self.schedule, course, group, console, log),
            running,
        )
        steps.resume()
        if self.early_stop is not None:
            self.early_stop.begin(group)
        with loader:
            with interrupts.deferred() as asked, clock.phase("train"), console.task("train", self.max_steps) as task:
                while (moment := steps.between(asked(), self.checkpoint_seconds)) is not None:
                    if validate is not None and self.validate_every and progress.step % self.validate_every == 0:
                        recompiles.uncounted(steps.validate)(validate)
                    loss_now = steps.one(moment)
                    recompiles.look()
                    if self.early_stop is not None and (why := self.early_stop.reason(progress.step, loss_now, group)):
                        raise steps.given_up(why)
                    speed = progress.tokens / max(clock.elapsed("train"), 1e-9)
                    task.update(progress.step, loss=loss_now, tokens_per_second=speed)
            with clock.phase("calibrate"):
                weights = steps.averaged(self.holdout_batches)
        steps.conclude()
        for target, source in model.begin_plan("looped").items():  # where training never came to recurrence
            weights[target] = weights[source].clone()
        return shed(model, weights), progress

    def equip(self, model: GPT, seed: int) -> None:
        """Give `model`, before its optimisers are made, the parts that only training has. ValueError when the loss does
        not fit the model."""
        if self.loss is not None:
            attach(model, self.loss.heads(model), seed)

    def course(self, plans: Sequence[str]) -> Course:
        """All schedules of a run; `plans` names the model's plans in order. ValueError as `activation`."""
        return Course(
            max_steps=self.max_steps,
            max_seconds=self.max_seconds,
            lr_scale=rewarmed(self.schedule, self.rewarmup_steps),
            momentum=self.momentum,
            weight_decay_scale=constant_or(self.weight_decay, 1.0),
            plan=self.activation(plans),
            sequence_tokens=constant_or(self.context, self.sequence_tokens),
            batch_tokens=constant_or(self.batch, self.batch_tokens),
            others=() if self.loss is None else self.loss.turns,
        )

    def refuse_rounding(self, rounding: Rounding | None, course: Course) -> None:
        """ValueError when a budget of steps leaves too few for rounded weights; one of seconds is looked at again after
        the first steps, and where both are given they are taken to end together."""
        if rounding is not None and self.max_steps is not None:
            seconds = self.max_seconds / self.max_steps if self.max_seconds is not None else 0.0
            refuse_few_steps(planned(rounding, self.schedule, course, seconds), rounding.min_steps)

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

    def micro_steps(self, world_size: int) -> dict[int, int]:
        """Micro-batches each rank runs per optimiser step, by the tokens of the step. Raises UserError when they cannot
        be shared out evenly."""
        shared = {}
        for tokens in batch_sizes(self):
            total = tokens // self.micro_batch_tokens
            if total % world_size:
                raise UserError(
                    f"{total} micro-batches a step cannot be shared by {world_size} processes: "
                    "change launch.nproc, train.batch_tokens or train.micro_batch_tokens."
                )
            shared[tokens] = total // world_size
        return shared

    def batches(self, dataset: TrainFiles, group: Group) -> Prefetch:
        """The training batches of this rank, drawn ahead of the steps that use them.

        Where the sequence length changes, documents are drawn whole and cut by the step that takes them.
        """
        whole = self.context is not None and not gives_whole_rows(self.loader)
        together = math.gcd(*(tokens // self.micro_batch_tokens for tokens in batch_sizes(self)))
        shape = BatchShape(self.micro_batch_tokens, 0 if whole else self.sequence_tokens, together)
        loader = self.loader(dataset.train_files, group.world_size, group.rank, shape)
        return Prefetch(loader, depth=self.prefetch_batches, pin=group.device.type == "cuda")

    def _prepared_loss(
        self,
        session: Session,
        attention: Attention,
        group: Group,
        console: Console,
        running: Running | None,
        fused: Fused,
    ) -> Callable[..., Loss]:
        """The loss of a micro-batch as steps take it."""
        return prepared_loss(self, session, attention, group, console, running, fused)

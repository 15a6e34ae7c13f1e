"""One run of the training loop, step by step."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.model.mode import evaluating
from pgolf.optim.averaging import SeveralDecays, Weights
from pgolf.optim.exchange import GradientExchange
from pgolf.optim.schedule import Position
from pgolf.train import interrupts
from pgolf.train.batches import Taken
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.clock import BudgetClock
from pgolf.train.course import Course, Settings, logged
from pgolf.train.diagnosis import broken_weights, first_not_finite
from pgolf.train.diagnostics.watch import Watch
from pgolf.train.loss.forward import Loss, plain_of
from pgolf.train.loss.objective import Given, Running
from pgolf.train.rounding import Switch
from pgolf.train.state import Session

SLOW_STEP, SLOWER = 60.0, 50.0  # seconds, and how many times the mean step, from which a step is remarked on


@dataclass(frozen=True)
class Moment:
    """Where all ranks agree that training stands. seconds: of the leader's clock."""

    fraction: float
    seconds: float


@dataclass
class Steps:
    """The steps of one run: what they work with, and what is done between them.

    micro_steps: micro-batches of a rank by tokens of a batch; loss: of a micro-batch whose longest sequence has so many
    tokens, and of what `objective` gives it where there is one; recut: whether sequences are cut to the length of the
    stage here, and not by the loader; watch: what the run records of itself; switch: turns rounding of the weights on,
    where they are rounded at all.
    """

    course: Course
    session: Session
    exchange: GradientExchange
    checkpoints: Checkpoints
    micro_steps: dict[int, int]
    loss: Callable[..., Loss]
    recut: bool
    watch: Watch
    group: Group
    clock: BudgetClock
    console: Console
    log: Callable[[dict[str, Any]], None]
    switch: Switch | None = None
    objective: Running | None = None
    saved_step: int = 0
    saved_at: float = 0.0
    agreed_at: float = 0.0

    def resume(self) -> None:
        """Go on from the newest state that is whole, when there is one."""
        progress = self.session.progress
        if (state := self.checkpoints.newest(self.group, self.console)) is not None:
            self.clock.seconds["train"] = self.session.restore(state, self.group)
            self.console.say(f"continuing from step {progress.step}: {self.checkpoints.path}")
        self.saved_step, self.saved_at = progress.step, self.clock.elapsed("train")
        self.agreed_at = self.saved_at

    def between(self, asked_to_end: bool, checkpoint_seconds: float) -> Moment | None:
        """Agree with the other ranks on the time, write a checkpoint when one is due, and say where training stands;
        None at the end of the budget. Raises Interrupted when any rank was asked to end."""
        progress = self.session.progress
        leaders = self.clock.elapsed("train") if self.group.leads else -math.inf
        seconds, stop = self.group.largest([leaders, float(asked_to_end)])
        self._remark_on_slowness(seconds)
        due = stop or seconds - self.saved_at >= checkpoint_seconds
        if due and progress.step > self.saved_step:
            self.save(seconds)
        if stop:
            self.checkpoints.close()
            where = f"step {progress.step} is kept in {self.checkpoints.path}" if progress.step else "no step was done"
            self.console.say(f"asked to end: {where}")
            raise interrupts.Interrupted
        fraction = self.course.fraction(progress.step, seconds)
        return Moment(fraction, seconds) if fraction < 1.0 else None

    def save(self, seconds: float) -> None:
        """Write a checkpoint. UserError when the weights are no longer numbers: the last good one must stay."""
        self._refuse_broken_weights()
        state = self.session.gathered(self.group, seconds)
        if self.group.leads:
            self.checkpoints.save(state)
        self.saved_step, self.saved_at = self.session.progress.step, seconds

    def given_up(self, why: str) -> UserError:
        """The error that ends training for a reason which is not its own, after the state was saved."""
        seconds = self.clock.elapsed("train")
        self.watch.stopped_early(self._position(seconds))
        self.save(seconds)
        self.checkpoints.close()
        return UserError(why)

    def validate(self, score: Callable[[], dict[str, float]]) -> None:
        """Score the weights as they are, off the clock."""
        with self.clock.phase("validate"):
            self.log({"event": "validation", "step": self.session.progress.step, **score()})

    def one(self, moment: Moment) -> float:
        """One optimiser step and its record; gives the plain cross entropy. UserError when the loss is not a
        number."""
        progress, average = self.session.progress, self.session.average
        settings = self._enter(moment)
        begun = Position(progress.step, moment.fraction, moment.seconds)
        self.watch.before_step(begun, settings)
        if self.switch is not None:
            self.switch.before_step(progress, moment.fraction, moment.seconds)
        taken = self._taken(settings.sequence_tokens)
        losses, grad_norm = self._optimise(taken, settings, begun)
        after = Position(progress.step + 1, self.course.fraction(progress.step + 1, moment.seconds), moment.seconds)
        average.update(self.session.model, after, settings.lr_scale)
        progress.step += 1
        progress.tokens += settings.batch_tokens
        progress.data_seconds += taken.seconds
        self._record(moment, settings, taken, losses, grad_norm)
        if not (math.isfinite(losses["objective"]) and math.isfinite(grad_norm)):
            raise self._not_a_number(losses["objective"], grad_norm, taken, settings)
        self.watch.after_step(begun, taken.batches[-1], settings.sequence_tokens)
        return losses["cross_entropy"]

    def averaged(self, holdout_batches: int) -> Weights:
        """The averaged weights; the best of several by training text that training has not used. UserError when there
        is nothing to average."""
        self._refuse_broken_weights()
        average = self.session.average
        if isinstance(average, SeveralDecays):
            self._choose(average, holdout_batches)
        try:
            return average.weights()
        except ValueError as error:
            raise UserError(f"train.averaging: {error}") from error

    def conclude(self) -> None:
        """Wait for the last checkpoint, and record what was planned, and what of it never happened."""
        self.checkpoints.close()
        progress, seconds = self.session.progress, self.clock.elapsed("train")
        if self.switch is not None:
            self.switch.conclude(progress)
        missed = self.watch.conclude(self._position(seconds))
        planned = self.course.table(seconds / max(progress.step, 1))
        self.log({"event": "schedules", "planned": planned, "never_happened": missed})
        for sentence in missed:
            self.console.say(f"note: {sentence}")
        share = progress.data_seconds / max(seconds, 1e-9)
        self.console.say(f"training waited {progress.data_seconds:.2f} s for its data ({share:.2%} of its time)")

    def _position(self, seconds: float) -> Position:
        """Where training stands after so many seconds."""
        step = self.session.progress.step
        return Position(step, self.course.fraction(step, seconds), seconds)

    def _enter(self, moment: Moment) -> Settings:
        """Set everything to what the course says for this moment."""
        session, progress = self.session, self.session.progress
        position = Position(progress.step, moment.fraction, moment.seconds)
        length = self.course.sequence_tokens.at(position)
        if progress.sequence_tokens not in (None, length):
            progress.changed_at = progress.step
        progress.sequence_tokens = length
        settings = self.course.at(Position(progress.step, moment.fraction, moment.seconds, progress.changed_at))
        if settings.plan != session.model.plan_name:
            session.average.adopt(session.model.begin_plan(settings.plan))
        if settings.plan == "looped" and progress.looped_at is None:
            progress.looped_at = progress.step
        session.optimizers.schedule(settings.lr_scale, settings.momentum, settings.weight_decay_scale)
        return settings

    def _taken(self, length: int) -> Taken:
        loader = self.session.loader
        return Taken(loader, length if self.recut else None, bucket=getattr(loader.loader, "bucket", 1))

    def _shares(self, taken: Taken, micro_steps: int, position: Position) -> Iterator[Batch]:
        """The micro-batches of a step. For an objective all of them are drawn before the first, to be counted."""
        if self.objective is None:
            yield from (taken.next() for _ in range(micro_steps))
            return
        batches = [taken.next() for _ in range(micro_steps)]
        taken.given = self.objective.given(batches, position, self.group)
        yield from batches

    def _optimise(self, taken: Taken, settings: Settings, position: Position) -> tuple[dict[str, float], float]:
        """Mean losses by name (`objective` is what is minimised, `cross_entropy` the plain one) and norm of the
        gradient before clipping, the same on every rank. Weights are never updated by what is not a number."""
        optimizers, micro_steps = self.session.optimizers, self.micro_steps[settings.batch_tokens]
        optimizers.zero_grad()
        for part in self.session.model.controlled:
            part.begin_step(self.session.progress.step)
        totals: dict[str, Tensor] = {}
        with self.switch.applied(self.session.progress) if self.switch is not None else contextlib.nullcontext():
            for index, batch in enumerate(self._shares(taken, micro_steps, position)):
                objective, parts = self.loss(batch, settings.sequence_tokens, *taken.given[index : index + 1])
                objective = objective / micro_steps
                objective.backward()
                shares = {"objective": objective.detach(), **{name: part / micro_steps for name, part in parts.items()}}
                totals = {name: totals[name] + share for name, share in shares.items()} if totals else shares
        self.watch.after_backward()
        norm = self.exchange.average(list(totals.values()))
        losses, grad_norm = {name: float(total) for name, total in totals.items()}, float(norm)
        losses.setdefault("cross_entropy", losses["objective"])
        if math.isfinite(losses["objective"]) and math.isfinite(grad_norm):
            optimizers.step()
            for part in self.session.model.controlled:
                part.end_step(self.group)
        return losses, grad_norm

    def _record(
        self, moment: Moment, settings: Settings, taken: Taken, losses: dict[str, float], grad_norm: float
    ) -> None:
        """A step's event. train_loss is plain cross entropy, whatever is minimised; `objective` is that, where it is
        another, and loss_NAME what the term or part NAME has in it."""
        progress, seconds = self.session.progress, self.clock.elapsed("train")
        event = {"event": "step", "step": progress.step, "train_loss": losses["cross_entropy"]}
        further = {
            f"loss_{name}": value for name, value in losses.items() if name not in ("objective", "cross_entropy")
        }
        if further or self.objective is not None:
            event |= {"objective": losses["objective"], **further}
        times = {"fraction": moment.fraction, "seconds": seconds, "data_seconds": taken.seconds}
        self.log({**event, **logged(settings), "grad_norm": grad_norm, "tokens": progress.tokens, **times})

    def _refuse_broken_weights(self) -> None:
        progress = self.session.progress
        if (found := broken_weights(self.session.model)) is not None:
            raise UserError(
                f"step {progress.step} left weights that are not numbers or have no finite norm, first the parameter "
                f"{found}: lower the learning rate of its role. {self._last_good()}"
            )

    def _remark_on_slowness(self, seconds: float) -> None:
        """Say when the time since the last agreement is out of all proportion."""
        step, before, self.agreed_at = self.session.progress.step, self.agreed_at, seconds
        mean = before / max(step - 1, 1)
        if step > 1 and before > 0.0 and (took := seconds - before) > max(SLOW_STEP, SLOWER * mean):
            self.console.say(
                f"step {step} took {took:.0f} s where the ones before took {mean:.2f} s: this machine slept, "
                "its clock jumped or something else ran. The budget counts it."
            )

    def _not_a_number(self, loss: float, grad_norm: float, taken: Taken, settings: Settings) -> UserError:
        """Which tensor of which rank went first. Every rank calls it: their mean is not a number on any of them."""
        session = self.session
        session.optimizers.zero_grad()
        shares = [(batch, taken.given[index : index + 1]) for index, batch in enumerate(taken.batches)]

        def objective_of(share: tuple[Batch, list[Given]]) -> Tensor:
            batch, given = share
            return self.loss(batch, settings.sequence_tokens, *given)[0]

        found = self.group.gather(first_not_finite(session.model, shares, objective_of))
        first = next(((rank, what) for rank, what in enumerate(found) if what is not None), None)
        where = f" on rank {first[0]}" if first is not None and self.group.world_size > 1 else ""
        what = f"{first[1]}{where}" if first is not None else "their sum over micro-batches and processes"
        return UserError(
            f"the training loss became {loss} and the gradient norm {grad_norm} at step {session.progress.step}. "
            f"Not a number first: {what}. Lower optim.matrix.lr or train.clip.norm. {self._last_good()}"
        )

    def _last_good(self) -> str:
        self.checkpoints.close()
        path = self.checkpoints.path
        return f"The last good state is {path}." if path.exists() else "There is no good state yet."

    def _choose(self, average: SeveralDecays, holdout_batches: int) -> None:
        """Choose by the batches that would come next; all ranks by their mean loss."""
        session = self.session
        longest = self.course.sequence_tokens.at(Position(session.progress.step, 1.0))
        taken = self._taken(longest)
        batches = [taken.next() for _ in range(holdout_batches)]
        given = [self.objective.alone(batch) if self.objective is not None else [] for batch in batches]
        if getattr(session.loader.loader, "epoch", 0):
            self.console.say("the training text was used up, so the average is chosen by text that was trained on")
        trained = {name: value.clone() for name, value in session.model.state_dict().items()}

        def loss_of(weights: Weights) -> float:
            session.model.load_state_dict(weights)
            with torch.no_grad(), evaluating(session.model):
                losses = [self.loss(batch, longest, *own) for batch, own in zip(batches, given, strict=True)]
                total = sum(float(plain_of(loss)) for loss in losses) / len(batches)
            shared = torch.tensor(total, dtype=torch.float64, device=self.group.device)
            self.group.mean_([shared])
            return float(shared)

        losses = average.choose(loss_of)
        session.model.load_state_dict(trained)
        self.log({"event": "averages", "losses": losses, "chosen": average.chosen})
        told = ", ".join(f"{decay}: {loss:.5f}" for decay, loss in losses.items())
        self.console.say(f"average {average.chosen} chosen by {holdout_batches} held-out micro-batches ({told})")

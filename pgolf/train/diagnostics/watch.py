"""All that a run watches of itself, at the points of a step where there is something to see."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pgolf.console import Console
from pgolf.data.loaders import Batch
from pgolf.distributed import Group
from pgolf.model.gpt import GPT
from pgolf.optim.schedule import Position
from pgolf.train.clock import BudgetClock
from pgolf.train.course import Course, Settings
from pgolf.train.diagnostics.diagnostic import Diagnostic
from pgolf.train.diagnostics.learned import Recorder, learned_names, summaries
from pgolf.train.diagnostics.liveness import Liveness
from pgolf.train.diagnostics.turns import Sight, Turns
from pgolf.train.state import Session

CLOCK = "diagnose"  # a phase that no budget counts


class Watch:
    """Events of the schedules, parameters that do not learn and learned gains; a further diagnostic where asked for.

    Whatever it finds goes into the session's progress and the log; it changes nothing that training reads. forward:
    runs the model on a micro-batch whose longest sequence has so many tokens, not compiled.
    """

    def __init__(
        self,
        session: Session,
        course: Course,
        diagnostic: Diagnostic | None,
        forward: Callable[[Batch, int], Any],
        group: Group,
        clock: BudgetClock,
        console: Console,
        log: Callable[[dict[str, Any]], None],
        stops_early: bool,
        rounds: bool,
    ) -> None:
        self.session, self.diagnostic, self.forward = session, diagnostic, forward
        self.group, self.clock, self.log = group, clock, log
        parameters = dict(session.model.named_parameters())
        self._learned = {name: parameters[name] for name in learned_names(session.model)}
        self._recorder = Recorder()
        self._settings: Settings | None = None
        self._stopped_early = False
        self.liveness = Liveness(session.model, session.optimizers, group, session.progress, console, log)
        sights = self._sights(course, stops_early, rounds)
        self.turns = Turns(_planned(course, session.model), sights, session.progress, console, log)

    def before_step(self, position: Position, settings: Settings) -> None:
        """A step begins at `position`, with `settings`."""
        self._settings = settings
        self.turns.before_step(position)
        if self.group.leads and self._recorder.due(position.fraction):
            self._record_learned(position)

    def after_backward(self) -> None:
        """The gradients of the step are there, this process's own."""
        self.liveness.after_backward()

    def after_step(self, position: Position, batch: Batch, longest: int) -> None:
        """The step that began at `position` is done, and counted; batch: one of its micro-batches, with sequences of up
        to `longest` tokens."""
        self.turns.after_step(position)
        self.liveness.after_step()
        model, step = self.session.model, self.session.progress.step
        if self.diagnostic is not None and self.group.leads and self.diagnostic.due(model, step):
            with self.clock.phase(CLOCK):
                found = self.diagnostic.record(model, partial(self.forward, batch, longest))
            self.log({"event": self.diagnostic.event, "step": step, **found})

    def stopped_early(self, position: Position) -> None:
        """The run ends because it is behind another."""
        self._stopped_early = True
        self.turns.after_step(position)

    def conclude(self, last: Position) -> list[str]:
        """Training ended at `last`; a sentence for each event that never came."""
        self.liveness.conclude()
        if self.group.leads:
            self._record_learned(last)
        self.session.progress.missed = self.turns.conclude(last)
        return self.session.progress.missed

    def _record_learned(self, position: Position) -> None:
        where = {"step": position.step, "fraction": position.fraction, "seconds": position.seconds}
        self.log({"event": "learned", **where, "values": summaries(self._learned, self._learned)})
        equilibrium = self.session.model.equilibrium
        if equilibrium is not None and equilibrium.reconstruction is not None:
            missed = float(equilibrium.reconstruction)  # in the backward pass of the step before
            self.log({"event": "equilibrium", **where, "reconstruction_error": missed})

    def _sights(self, course: Course, stops_early: bool, rounds: bool) -> list[Sight]:
        average, progress = self.session.average, self.session.progress
        found = []
        if not average.begun:
            taken, never = "the average takes in its first weights", "the average never took in weights"
            found.append(Sight("averaging", taken, lambda: average.begun, never))
        if not course.lr_scale.turns:
            fell = "the learning rate falls below its peak"
            found.append(Sight("lr_scale", fell, lambda: self._scale() < 1.0, "the learning rate never fell"))
        if rounds:
            came = "weights are rounded from here on"
            found.append(Sight("qat", came, lambda: progress.rounded_at is not None, "weights were never rounded"))
        if stops_early:
            behind, never = "the run is behind its reference and ends", "the run was never behind its reference"
            found.append(Sight("early_stop", behind, lambda: self._stopped_early, never))
        return found

    def _scale(self) -> float:
        return 1.0 if self._settings is None else self._settings.lr_scale


def _planned(course: Course, model: GPT) -> list[Any]:
    """The turns of all schedules; a plan that is like the one before it is no event."""
    alike = len(set(model.plans.values())) == 1
    return [(name, turn) for name, turn in course.turns if not (alike and name == "plan")]

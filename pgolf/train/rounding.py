"""Training with rounded weights near its end: when it comes on, and whether enough steps are left then."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pgolf.console import Console
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.optim.schedule import Position, Schedule
from pgolf.train.course import Course
from pgolf.train.state import Progress

FORECAST_AT = 20
"""Steps after which their mean length tells how many will be left, where the budget is in seconds."""


class Rounding(Protocol):
    """What rounds the weights of a model (pgolf.quant.qat)."""

    min_steps: int

    @property
    def description(self) -> str:
        """What is rounded, for people."""
        ...

    def due(self, position: Position, lr_scale: Schedule) -> bool:
        """Whether it is on at `position`."""
        ...

    def begin(self) -> None:
        """Learn what it needs to know. Every process calls it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What was learned."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was learned."""
        ...

    def share(self, steps_on: int) -> float:
        """The part of the rounding that weights feel after so many steps with it."""
        ...

    def applied(self, steps_on: int) -> contextlib.AbstractContextManager[None]:
        """The model with rounded weights inside the block, after so many steps with them."""
        ...


@dataclass(frozen=True)
class Plan:
    """The first step with rounded weights, None when there is none, and the number of all steps."""

    first: int | None
    total: int

    @property
    def left(self) -> int:
        """Steps with rounded weights."""
        return 0 if self.first is None else self.total - self.first


def planned(rounding: Rounding, lr_scale: Schedule, course: Course, seconds_per_step: float) -> Plan:
    """The plan of a budget, with steps of that length (0.0 where only steps are counted)."""
    step, first = 0, None
    while (fraction := course.fraction(step, step * seconds_per_step)) < 1.0:
        position = Position(step, fraction, step * seconds_per_step)
        first = step if first is None and rounding.due(position, lr_scale) else first
        step += 1
    return Plan(first, step)


def refuse_few_steps(plan: Plan, min_steps: int) -> None:
    """ValueError when a plan leaves fewer than min_steps steps."""
    if plan.left >= min_steps:
        return
    what = "never comes on" if plan.first is None else f"comes on at step {plan.first} and leaves {plan.left} step(s)"
    raise ValueError(
        f"quant.qat {what} of {plan.total}, fewer than quant.qat.min_steps={min_steps}: begin earlier "
        "(quant.qat.below_lr_scale, quant.qat.at_fraction), train longer, or lower min_steps"
    )


@dataclass
class Switch:
    """Turns rounding on, once and for all. lr_scale: the multiplier of the learning rates as configured, without what
    changes of the context do to it."""

    rounding: Rounding
    lr_scale: Schedule
    course: Course
    group: Group
    console: Console
    log: Callable[[dict[str, Any]], None]
    declined: bool = False

    def before_step(self, progress: Progress, fraction: float, seconds: float) -> None:
        """Turn rounding on when this is its moment. UserError when the first steps show that too few will be left."""
        if progress.rounded_at is not None or self.declined:
            return
        mean = seconds / progress.step if progress.step else 0.0  # what passed before the first step is no length
        timed = self.course.max_seconds is not None
        if timed and progress.step == FORECAST_AT:
            try:
                refuse_few_steps(planned(self.rounding, self.lr_scale, self.course, mean), self.rounding.min_steps)
            except ValueError as error:
                raise UserError(f"{error} (steps take {mean:.3g} s here).") from error
        if not self.rounding.due(Position(progress.step, fraction, seconds), self.lr_scale):
            return
        left = self._left(progress.step, mean)
        at = {"step": progress.step, "fraction": fraction, "seconds": seconds, "steps_left": left}
        if left is not None and left < self.rounding.min_steps:
            self.declined = True
            self.log({"event": "qat", "state": "refused", **at})
            self.console.say(
                f"quant.qat stays off: about {left} step(s) are left at step {progress.step}, fewer than "
                f"quant.qat.min_steps={self.rounding.min_steps}"
            )
            return
        self.rounding.begin()
        self.rounding.load_state_dict(self.group.gather(self.rounding.state_dict())[0])
        progress.rounded_at = progress.step
        self.log({"event": "qat", "state": "on", **at, "rounded": self.rounding.description})
        rest = "a number that depends on their length" if left is None else f"about {left}"
        self.console.say(
            f"quant.qat: weights are rounded from step {progress.step} on, with {rest} left "
            f"({self.rounding.description})"
        )

    def applied(self, progress: Progress) -> contextlib.AbstractContextManager[None]:
        """Rounded weights inside the block, where rounding is on."""
        if progress.rounded_at is None:
            return contextlib.nullcontext()
        return self.rounding.applied(progress.step - progress.rounded_at)

    def conclude(self, progress: Progress) -> None:
        """Record that rounding never came on, or not in full."""
        if progress.rounded_at is None and not self.declined:
            self.log({"event": "qat", "state": "never"})
        if progress.rounded_at is not None:
            share = self.rounding.share(progress.step - 1 - progress.rounded_at)
            if share < 1.0:
                self.log({"event": "qat", "state": "partial", "share": share})
                self.console.say(f"note: the last step felt {share:.0%} of what quant.qat rounds: it ended too early")

    def _left(self, step: int, seconds_per_step: float) -> int | None:
        """Steps that are left, by the nearer limit; seconds are the leader's, so all processes agree. None before the
        first step of a budget in seconds."""
        course = self.course
        by_steps = course.max_steps - step if course.max_steps else None
        by_seconds = (
            int(course.max_seconds / seconds_per_step) - step if course.max_seconds and seconds_per_step > 0.0 else None
        )
        known = [one for one in (by_steps, by_seconds) if one is not None]
        return min(known) if known else None

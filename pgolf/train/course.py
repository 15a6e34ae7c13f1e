"""The course of a run: every setting that changes over training, read off one clock."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pgolf.optim.schedule import Activation, Constant, Position, Product, Rewarmup, Schedule, Stages, Turn
from pgolf.optim.table import never_happened, planned, positions, with_changes

POINTS = 201  # moments of the planned table


@dataclass(frozen=True)
class Settings:
    """What one step is done with. lr_scale and weight_decay_scale multiply the base values."""

    lr_scale: float
    momentum: float
    weight_decay_scale: float
    plan: str
    sequence_tokens: int
    batch_tokens: int


@dataclass(frozen=True)
class Course:
    """A schedule for each of `Settings`, by the same names, and the budget that they share.

    Ranks must ask with the same position, that of the leader's clock, so that none switches a step apart.
    """

    max_steps: int | None
    max_seconds: float | None
    lr_scale: Schedule
    momentum: Schedule
    weight_decay_scale: Schedule
    plan: Activation
    sequence_tokens: Schedule
    batch_tokens: Schedule
    others: Sequence[tuple[str, Turn]] = ()  # turns of what is no setting: (its name, the turn)

    @property
    def turns(self) -> list[tuple[str, Turn]]:
        """Where a setting, or what is none, changes its course."""
        return [*((name, turn) for name, one in self.schedules.items() for turn in one.turns), *self.others]

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """The schedules by name, in the order of `Settings`."""
        return {name: getattr(self, name) for name in Settings.__dataclass_fields__}

    def fraction(self, step: int, seconds: float) -> float:
        """The elapsed part of the budget, by whichever limit is nearer."""
        by_steps = step / self.max_steps if self.max_steps else 0.0
        by_seconds = seconds / self.max_seconds if self.max_seconds else 0.0
        return max(by_steps, by_seconds)

    def at(self, position: Position) -> Settings:
        """The settings of the step that begins at `position`."""
        return Settings(**{name: schedule.at(position) for name, schedule in self.schedules.items()})

    def shapes(self) -> list[tuple[str, int]]:
        """The (plan, sequence length) pairs that occur, in order: each is compiled by itself."""
        moments = [Position(0, index / 1000) for index in range(1001)]
        pairs = [(str(self.plan.at(moment)), int(self.sequence_tokens.at(moment))) for moment in moments]
        return list(dict.fromkeys(pairs))

    def table(self, seconds_per_step: float | None = None, points: int = POINTS) -> dict[str, list[Any]]:
        """What is planned over the budget: columns step, fraction, seconds and one a setting.

        A budget in seconds alone has steps once seconds_per_step is known; ValueError without it.
        """
        moments = positions(
            max_steps=self.max_steps, max_seconds=self.max_seconds, seconds_per_step=seconds_per_step, points=points
        )
        if isinstance(self.sequence_tokens, Stages):
            moments = with_changes(moments, self.sequence_tokens)
        return planned(self.schedules, moments)

    def never_happened(self, last: Position) -> list[str]:
        """A sentence for every turn that training ended before."""
        return never_happened(self.turns, last)


def rewarmed(schedule: Schedule, steps: int) -> Schedule:
    """`schedule` that starts again from small learning rates after a change of the sequence length (0: it does not)."""
    return Product(factors=[schedule, Rewarmup(steps=steps)]) if steps else schedule


def constant_or(schedule: Schedule | None, value: float) -> Schedule:
    """`schedule`, or `value` throughout when there is none."""
    return Constant(value=value) if schedule is None else schedule


def logged(settings: Settings) -> dict[str, Any]:
    """The settings as plain values, for the record of a step."""
    return asdict(settings)

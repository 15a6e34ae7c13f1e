"""Schedules as data: a value for each moment of training, by one clock that all of them share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Position:
    """A moment of training.

    step: optimiser steps done (0 before the first); fraction: elapsed part of the budget, 1 at its end; seconds: of
    training so far; changed_at: the step that was the first of the present stage of a staged setting, None in the first
    stage.
    """

    step: int
    fraction: float
    seconds: float = 0.0
    changed_at: int | None = None


@dataclass(frozen=True)
class Turn:
    """A point at which a schedule changes its course: `what` happens when `clock` reaches `at`, or with `beyond` when
    it has passed it."""

    what: str
    clock: Literal["fraction", "step"]
    at: float
    beyond: bool = False

    def reached(self, position: Position) -> bool:
        """Whether a step that begins at `position` comes after the turn."""
        now = getattr(position, self.clock)
        return bool(now > self.at if self.beyond else now >= self.at)

    @property
    def planned(self) -> str:
        """When it should happen, for people."""
        return f"{self.at:.1%} of the budget" if self.clock == "fraction" else f"step {self.at:g}"


class Schedule(Protocol):
    """A pure function of the position."""

    @property
    def turns(self) -> Sequence[Turn]:
        """Where the course changes, in order."""
        ...

    def at(self, position: Position) -> Any:
        """The value at `position`."""
        ...


class Constant:
    """The same value throughout."""

    turns: Sequence[Turn] = ()

    def __init__(self, *, value: float) -> None:
        self.value = value

    def at(self, position: Position) -> float:
        """The value."""
        return self.value


class Warmdown:
    """Multiplier on all learning rates: 1, then linear to 0 over the last `fraction` of the budget, never under
    `floor`.

    Source: modded-nanogpt; floor (min_lr) from PR 1787. Raises ValueError when fraction is not in (0, 1] or floor not
    in [0, 1].
    """

    def __init__(self, *, fraction: float, floor: float) -> None:
        if not 0.0 < fraction <= 1.0 or not 0.0 <= floor <= 1.0:
            raise ValueError(f"warmdown fraction={fraction} must lie in (0, 1] and floor={floor} in [0, 1]")
        self.fraction = fraction
        self.floor = floor

    @property
    def turns(self) -> Sequence[Turn]:
        """The start of the fall, and the floor when there is one."""
        floor = [Turn("the warmdown reaches its floor", "fraction", 1.0 - self.floor * self.fraction)]
        return [Turn("the warmdown starts", "fraction", 1.0 - self.fraction), *(floor if self.floor else [])]

    def __call__(self, progress: float) -> float:
        """Multiplier at `progress`, the elapsed part of the budget in [0, 1]."""
        if progress < 1.0 - self.fraction:
            return 1.0
        return max((1.0 - progress) / self.fraction, self.floor)

    def at(self, position: Position) -> float:
        """Multiplier at `position`."""
        return self(position.fraction)


class StepWarmdown:
    """Multiplier of the first published baseline: linear to 0 over the last `steps` steps, whose length in seconds is
    guessed from the steps so far (2026-03-17). max_seconds=None: over the last `steps` of max_steps, which nothing else
    needs.

    With a budget in seconds on a slow machine the last `steps` steps are all of them, so the fall starts at once; the
    published runs knew. Raises ValueError when steps or max_steps is negative, or both limits are None.
    """

    def __init__(self, *, steps: int, max_steps: int | None, max_seconds: float | None) -> None:
        if steps < 0 or (max_steps is not None and max_steps < 0):
            raise ValueError(f"warmdown steps={steps} and max_steps={max_steps} must not be negative")
        if max_steps is None and max_seconds is None:
            raise ValueError("the warmdown has no end: set its max_steps or max_seconds")
        self.steps, self.max_steps, self.max_seconds = steps, max_steps or 0, max_seconds

    @property
    def turns(self) -> Sequence[Turn]:
        """The start of the fall; with a budget in seconds none, since it depends on the speed of the machine."""
        if self.steps == 0 or self.max_seconds is not None:
            return []
        return [Turn("the warmdown starts", "step", max(self.max_steps - self.steps, 0))]

    def at(self, position: Position) -> float:
        """Multiplier at `position`."""
        if self.steps == 0:
            return 1.0
        if self.max_seconds is None:
            start = max(self.max_steps - self.steps, 0)
            return (self.max_steps - position.step) / self.steps if start <= position.step < self.max_steps else 1.0
        needed = self.steps * position.seconds / max(position.step, 1)
        remaining = max(self.max_seconds - position.seconds, 0.0)
        return remaining / max(needed, 1e-12) if remaining <= needed else 1.0


class MomentumRamp:
    """Momentum that goes linearly from `start` to `end` over the first `steps` steps.

    Raises ValueError when steps < 1, or start or end is not in [0, 1).
    """

    def __init__(self, *, start: float, end: float, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"momentum ramp steps={steps} must be at least 1")
        if not (0.0 <= start < 1.0 and 0.0 <= end < 1.0):
            raise ValueError(f"momentum ramp start={start} and end={end} must lie in [0, 1)")
        self.start, self.end, self.steps = start, end, steps

    @property
    def turns(self) -> Sequence[Turn]:
        """The end of the ramp."""
        return [Turn("the momentum ramp ends", "step", self.steps)]

    def __call__(self, step: int) -> float:
        """Momentum of training step `step` (0 is the first)."""
        share = min(step / self.steps, 1.0)
        return self.start + (self.end - self.start) * share

    def at(self, position: Position) -> float:
        """Momentum at `position`."""
        return self(position.step)


class Taper:
    """Multiplier on a weight decay: 1 until `start` (a part of the budget), then linear to `final` at its end (PR 1729,
    where it holds for Muon alone).

    Raises ValueError when start is not in [0, 1) or final is negative.
    """

    def __init__(self, *, start: float, final: float) -> None:
        if not 0.0 <= start < 1.0 or final < 0.0:
            raise ValueError(f"taper start={start} must lie in [0, 1) and final={final} must not be negative")
        self.start, self.final = start, final

    @property
    def turns(self) -> Sequence[Turn]:
        """The start of the taper."""
        return [Turn("the weight decay taper starts", "fraction", self.start)]

    def at(self, position: Position) -> float:
        """Multiplier at `position`."""
        share = (position.fraction - self.start) / (1.0 - self.start)
        return 1.0 + (self.final - 1.0) * min(max(share, 0.0), 1.0)


class Activation:
    """Which layer plan is walked: `first`, then each plan of `starts` from its part of the budget on.

    One entry is the published hard switch ({looped: 0.35}); several are a ramp (PR 1412: {loop1: 0.5, looped: 0.65}).
    Raises ValueError when a start is not in [0, 1] or two coincide.
    """

    def __init__(self, *, first: str, starts: Mapping[str, float]) -> None:
        moments = list(starts.values())
        if any(not 0.0 <= moment <= 1.0 for moment in moments) or len(set(moments)) < len(moments):
            raise ValueError(f"plan starts={dict(starts)} must be different parts of the budget, each between 0 and 1")
        self.first = first
        self.starts = dict(sorted(starts.items(), key=lambda item: item[1]))

    @property
    def turns(self) -> Sequence[Turn]:
        """The start of every plan but the first."""
        return [Turn(f"the plan {name} starts", "fraction", moment) for name, moment in self.starts.items()]

    def at(self, position: Position) -> str:
        """Name of the plan at `position`."""
        begun = [name for name, moment in self.starts.items() if position.fraction >= moment]
        return begun[-1] if begun else self.first


class Stages:
    """A whole number in stages, each a value and the part of the budget at which it ends: sequence lengths (progressive
    context, PR 2014: [[1024, 0.1], [2048, 0.7], [3072, 1.0]]) or tokens of a batch.

    A stage still holds at its own end. Raises ValueError when there is no stage, a value is not positive, the ends do
    not rise or the last is not 1.
    """

    def __init__(self, *, stages: Sequence[tuple[int, float]]) -> None:
        ends = [end for _, end in stages]
        if not stages or any(value < 1 for value, _ in stages):
            raise ValueError(f"stages={list(stages)} must be pairs of a positive number and the part of the budget")
        if ends[-1] != 1.0 or any(after <= before for before, after in zip([0.0, *ends], ends, strict=False)):
            raise ValueError(f"stages={list(stages)} must end at rising parts of the budget, the last at 1")
        self.stages = [(int(value), float(end)) for value, end in stages]

    @property
    def turns(self) -> Sequence[Turn]:
        """The start of every stage but the first."""
        pairs = zip(self.stages, self.stages[1:], strict=False)
        return [Turn(f"the stage of {value} starts", "fraction", end, beyond=True) for (_, end), (value, _) in pairs]

    def at(self, position: Position) -> int:
        """The value at `position`; beyond the budget, that of the last stage."""
        return next((value for value, end in self.stages if position.fraction <= end), self.stages[-1][0])


class Rewarmup:
    """Multiplier on all learning rates after a change of stage: k / steps in the k-th step of the new stage, at most 1;
    1 throughout the first stage (PR 2014: 32 steps after a change of the sequence length)."""

    turns: Sequence[Turn] = ()  # they are those of the staged setting

    def __init__(self, *, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"rewarmup steps={steps} must be at least 1")
        self.steps = steps

    def at(self, position: Position) -> float:
        """Multiplier at `position`."""
        if position.changed_at is None:
            return 1.0
        return min((position.step - position.changed_at + 1) / self.steps, 1.0)


class Product:
    """The product of schedules of numbers."""

    def __init__(self, *, factors: Sequence[Schedule]) -> None:
        self.factors = list(factors)

    @property
    def turns(self) -> Sequence[Turn]:
        """Those of the factors."""
        return [turn for factor in self.factors for turn in factor.turns]

    def at(self, position: Position) -> float:
        """Product of the values at `position`."""
        return math.prod(factor.at(position) for factor in self.factors)

"""All schedules of a run as one table: what was planned, what came of it, and what never happened."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pgolf.optim.schedule import Position, Schedule, Stages, Turn


def positions(
    *, max_steps: int | None, max_seconds: float | None, seconds_per_step: float | None = None, points: int = 401
) -> list[Position]:
    """Evenly spaced moments of a budget of steps, or of seconds at `seconds_per_step`.

    ValueError when it cannot be said how many steps there are.
    """
    if max_steps is None:
        if max_seconds is None or seconds_per_step is None:
            raise ValueError("a budget in seconds has steps to plot once seconds_per_step is known")
        max_steps = max(1, int(max_seconds / seconds_per_step))
    total = max_seconds or max_steps * (seconds_per_step or 0.0)
    shares = [index / (points - 1) for index in range(points)]
    return [Position(int(share * max_steps), share, share * total) for share in shares]


def with_changes(moments: Iterable[Position], stages: Stages) -> list[Position]:
    """The same moments, each knowing the step at which the present stage of `stages` was first seen."""
    known: list[Position] = []
    value, changed_at = None, None
    for moment in moments:
        now = stages.at(moment)
        if value is not None and now != value:
            changed_at = moment.step
        value = now
        known.append(Position(moment.step, moment.fraction, moment.seconds, changed_at))
    return known


def planned(schedules: Mapping[str, Schedule], moments: Sequence[Position]) -> dict[str, list[Any]]:
    """Columns step, fraction, seconds and one a schedule; only numbers and words, so that JSON can hold them."""
    columns: dict[str, list[Any]] = {
        "step": [moment.step for moment in moments],
        "fraction": [moment.fraction for moment in moments],
        "seconds": [moment.seconds for moment in moments],
    }
    return columns | {name: [schedule.at(moment) for moment in moments] for name, schedule in schedules.items()}


def planned_and_actual(
    schedules: Mapping[str, Schedule], moments: Sequence[Position], actual: Mapping[str, Sequence[Any]]
) -> dict[str, list[Any]]:
    """The table of `planned` at the moments of a run's steps, with a column `<name>_actual` for every schedule whose
    values the run recorded.

    ValueError when a recorded column has not one value a moment.
    """
    table = planned(schedules, moments)
    for name in schedules:
        if name in actual:
            if len(actual[name]) != len(moments):
                raise ValueError(f"{name} was recorded {len(actual[name])} times in {len(moments)} steps")
            table[f"{name}_actual"] = list(actual[name])
    return table


def never_happened(turns: Iterable[tuple[str, Turn]], last: Position) -> list[str]:
    """A sentence for every (setting, turn) that training ended before (a published taper was planned for step 14,000 of
    a run that stopped at step 4,844, and nobody saw)."""
    return [missed(name, turn, last) for name, turn in turns if not turn.reached(last)]


def missed(name: str, turn: Turn, last: Position) -> str:
    """The sentence for a turn of the schedule `name` that training, which ended at `last`, did not come to."""
    here = f"{last.fraction:.1%}" if turn.clock == "fraction" else f"step {last.step}"
    return f"{name}: {turn.what} at {turn.planned}, but training ended at {here}"

"""Every scheduled event of a run: when it came, and which never did.

A published taper was planned for step 14,000 of a run that stopped at step 4,844, so it measured something else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgolf.console import Console
from pgolf.optim.schedule import Position, Turn
from pgolf.optim.table import missed
from pgolf.train.state import Progress


@dataclass(frozen=True)
class Sight:
    """An event that no clock foretells: it has come when `seen` says so. never: what is said when it has not."""

    setting: str
    what: str
    seen: Callable[[], bool]
    never: str


@dataclass
class Turns:
    """Records each event once, in `progress.turns`, in the log and for people.

    planned: (setting, turn), of the schedules; sights: the others.
    """

    planned: Sequence[tuple[str, Turn]]
    sights: Sequence[Sight]
    progress: Progress
    console: Console
    log: Callable[[dict[str, Any]], None]

    def before_step(self, position: Position) -> None:
        """What has come when a step begins at `position`."""
        for setting, turn in self._pending():
            if turn.reached(position):
                self._note(setting, turn.what, turn.planned, position)

    def after_step(self, position: Position) -> None:
        """What the step that began at `position` brought."""
        for sight in self.sights:
            if not self._has_come(sight.setting, sight.what) and sight.seen():
                self._note(sight.setting, sight.what, None, position)

    def conclude(self, last: Position) -> list[str]:
        """Note what came with the end at `last`, and give a sentence for each event that never came."""
        self.before_step(last)
        never = [missed(setting, turn, last) for setting, turn in self._pending()]
        unseen = [sight for sight in self.sights if not self._has_come(sight.setting, sight.what)]
        return never + [f"{sight.setting}: {sight.never}" for sight in unseen]

    def _pending(self) -> list[tuple[str, Turn]]:
        return [(setting, turn) for setting, turn in self.planned if not self._has_come(setting, turn.what)]

    def _has_come(self, setting: str, what: str) -> bool:
        return any((one["setting"], one["what"]) == (setting, what) for one in self.progress.turns)

    def _note(self, setting: str, what: str, planned: str | None, position: Position) -> None:
        where = {"step": position.step, "fraction": position.fraction, "seconds": position.seconds}
        found = {"setting": setting, "what": what, "planned": planned, **where}
        self.progress.turns = [*self.progress.turns, found]  # a checkpoint may still hold the list before it
        self.log({"event": "turn", **found})
        foretold = f"; planned at {planned}" if planned else ""
        self.console.say(
            f"{setting}: {what} (after step {position.step}, {position.fraction:.1%} of the budget, "
            f"{position.seconds:.1f} s{foretold})"
        )

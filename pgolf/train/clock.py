"""One monotonic clock per run with named phases, and what the two time limits say about them."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

# What each side of the contest's time rules consists of, in order. Seconds of other names (validate) count nowhere.
TRAINING = ("compile", "train", "calibrate", "generate", "quantise", "pack")
SCORING = ("load", "compile", "precompute", "score")

# Which phases each reading of a rule counts. Strict: what reads training data counts as training, and what a score
# needs, from the file on, counts as scoring. As practised: the loops that the published records timed.
READINGS = {
    "train_strict": ("train", "calibrate"),
    "train_as_practised": ("train",),
    "score_strict": SCORING,
    "score_as_practised": ("precompute", "score"),
}


class BudgetClock:
    """Adds up the seconds spent in named phases. A phase may be entered again; one inside another stops the outer one
    while it runs.

    Seconds of an earlier process of the same run are given as `spent`, so that a resumed run keeps one clock. `now` may
    jump: what it goes back by counts as nothing.
    """

    def __init__(self, spent: dict[str, float] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = dict(spent or {})
        self._now = now
        self._open: list[str] = []
        self._seen = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time under `name`."""
        if name in self._open:
            raise RuntimeError(f"phase {name!r} begins inside itself")
        self._count()
        self._open.append(name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def elapsed(self, name: str) -> float:
        """Seconds spent in `name` so far, the running phase included."""
        self._count()
        return self.seconds.get(name, 0.0)

    def _count(self) -> None:
        """Credit the time since the last look to the innermost open phase."""
        now = self._now()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + max(0.0, now - self._seen)
        self._seen = now


def limits(
    training: Mapping[str, float], scoring: Mapping[str, float], train_limit: float, score_limit: float
) -> dict[str, dict[str, float | bool]]:
    """Both readings of both time rules for the seconds spent per phase."""
    table: dict[str, dict[str, float | bool]] = {}
    for name, phases in READINGS.items():
        spent, limit = (training, train_limit) if name.startswith("train") else (scoring, score_limit)
        total = sum(spent.get(phase, 0.0) for phase in phases)
        table[name] = {"seconds": total, "limit": limit, "within": total <= limit}
    return table

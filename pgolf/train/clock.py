"""One monotonic clock per run with named phases, and what the two time limits say about them."""

import contextlib
import time
from collections.abc import Callable, Iterator


class BudgetClock:
    """Adds up the seconds spent in named phases. A phase may be entered again; phases do not nest.

    Seconds of an earlier process of the same run are given as `spent`, so that a resumed run keeps one clock.
    """

    def __init__(self, spent: dict[str, float] | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = dict(spent or {})
        self._now = now
        self._current: str | None = None
        self._entered = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time under `name`."""
        if self._current is not None:
            raise RuntimeError(f"phase {name!r} begins inside phase {self._current!r}")
        self._current, self._entered = name, self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.elapsed(name)
            self._current = None

    def elapsed(self, name: str) -> float:
        """Seconds spent in `name` so far, the running phase included."""
        running = self._now() - self._entered if self._current == name else 0.0
        return self.seconds.get(name, 0.0) + running


def limits(seconds: dict[str, float], train_limit: float, score_limit: float) -> dict[str, dict[str, float | bool]]:
    """Both readings of the time rules for the seconds spent per phase.

    strict: training includes calibration, scoring includes loading the artifact; as_practised: the bare loops.
    """
    readings = {
        "train_strict": (["train", "calibrate"], train_limit),
        "train_as_practised": (["train"], train_limit),
        "score_strict": (["load", "score"], score_limit),
        "score_as_practised": (["score"], score_limit),
    }
    table: dict[str, dict[str, float | bool]] = {}
    for name, (phases, limit) in readings.items():
        total = sum(seconds.get(phase, 0.0) for phase in phases)
        table[name] = {"seconds": total, "limit": limit, "within": total <= limit}
    return table

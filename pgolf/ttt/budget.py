"""A time budget for scoring: what it will take is said early, and when it runs out the rest is left out by name."""

from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench

OUT_OF_TIME = "max_seconds"
EARLY = 0.05
"""Share of the text after which the pace is trusted."""


class Budget:
    """Watches the pace of scoring against `max_seconds`, which may be None. All processes of the group must ask
    together, and get the leader's answer."""

    def __init__(self, max_seconds: float | None, total: int, scorer: Scorer, bench: Bench) -> None:
        self._limit, self._total, self._scorer, self._bench = max_seconds, total, scorer, bench
        self._begun, self._warned = bench.clock(), False

    def spent(self, done: int) -> bool:
        """Whether the time is up after `done` of the `total` positions; warns once when it will not be enough."""
        if self._limit is None:
            return False
        elapsed = self._scorer.group.from_leader(self._bench.clock() - self._begun)
        expected = elapsed * self._total / max(1, done)
        if not self._warned and done >= EARLY * self._total and expected > self._limit:
            self._warned = True
            self._bench.console.say(
                f"{self._bench.title}: at this pace scoring takes {expected:.0f} s, more than "
                f"ttt.max_seconds={self._limit:g}: it will end with a part of the text unscored"
            )
        return elapsed >= self._limit

    def stop(self) -> None:
        """Leave out what is not scored; the scorer's coverage says so."""
        self._scorer.synchronise()
        self._scorer.leave_out(self._scorer.ledger.unscored(), OUT_OF_TIME)
        found = self._scorer.coverage
        self._bench.console.say(
            f"{self._bench.title}: ttt.max_seconds={self._limit:g} ran out with {found.documents} of "
            f"{found.num_documents} documents scored; {found.left_out} positions are left out, so this is no score of "
            "the validation text"
        )

"""The pace of scoring: what it will take is said early, how far it has come is logged, and when its time is up, or
someone asks it to end, the rest is left out by name."""

from pgolf.console import Task
from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench

OUT_OF_TIME, INTERRUPTED = "max_seconds", "interrupted"
EARLY = 0.05
"""Share of the work after which the pace is trusted."""
WORTH_SAYING = 30.0
"""Seconds of scoring that are foretold even without a limit."""
LINES = 200
"""About so many events tell how the score came about."""


def check_seconds(max_seconds: float | None) -> None:
    """Raises ValueError for a limit that is no time."""
    if max_seconds is not None and max_seconds <= 0:
        raise ValueError(f"ttt.max_seconds={max_seconds} must be above 0, or null for no limit")


class Budget:
    """Watches the pace of scoring against `max_seconds`, which may be None, and whether someone asks it to end.

    total, done: all there is to do and what is done, over all processes, in tokens that go through the model: a
    position near the end of a long document costs more of them. All processes must ask `spent` together; they get the
    same answer.
    """

    def __init__(self, max_seconds: float | None, total: float, scorer: Scorer, bench: Bench) -> None:
        self._limit, self._total, self._scorer, self._bench = max_seconds, total, scorer, bench
        self._begun, self._foretold, self._told, self._cut = bench.clock(), False, 0.0, False
        self._why = OUT_OF_TIME
        self.done = 0.0

    @property
    def title(self) -> str:
        """What progress is shown under: on several processes it is that of the first one's part."""
        world_size = self._scorer.group.world_size
        return self._bench.title + (f" (the first of {world_size} processes)" if world_size > 1 else "")

    def spent(self) -> bool:
        """Whether to end here. Says once, early, how long all of it will take."""
        asked_here = self._why == INTERRUPTED or self._bench.asked()
        elapsed, asked, cut = self._scorer.group.largest([self.elapsed(), float(asked_here), float(self._cut)])
        self._look_ahead(elapsed, self.done)
        self._why = INTERRUPTED if asked else OUT_OF_TIME
        return bool(asked or cut) or self._over(elapsed)

    def break_off(self, ahead: float) -> bool:
        """Asked by each process for itself, between the steps of a long batch: whether to leave the rest of it. Then
        `spent` and `broken_off` are true for all. ahead: what is done of batches that `done` does not count yet."""
        elapsed = self.elapsed()
        self._look_ahead(elapsed, self.done + ahead)
        if self._bench.asked():
            self._why = INTERRUPTED
        self._cut = self._cut or self._why == INTERRUPTED or self._over(elapsed)
        return self._cut

    def broken_off(self) -> bool:
        """Whether some process left a batch unfinished. All must ask together."""
        cut, asked = self._scorer.group.largest([float(self._cut), float(self._why == INTERRUPTED)])
        self._why = INTERRUPTED if asked else OUT_OF_TIME
        return bool(cut)

    def _over(self, elapsed: float) -> bool:
        return self._limit is not None and elapsed >= self._limit

    def _look_ahead(self, elapsed: float, done: float) -> None:
        """Foretell, once, when `done` is enough to judge by."""
        if not self._foretold and done >= EARLY * self._total:
            self._foretold = True
            self._foretell(elapsed * self._total / done)

    def elapsed(self) -> float:
        """Seconds since scoring began."""
        return self._bench.clock() - self._begun

    def _foretell(self, expected: float) -> None:
        documents = self._scorer.coverage.num_documents
        rate = documents / max(expected, 1e-9)
        note = {"event": "prediction", "stage": self._bench.title, "seconds": expected, "documents_per_second": rate}
        self._bench.log(note)
        short = self._limit is not None and expected > self._limit
        if self._limit is None and expected < WORTH_SAYING:
            return
        self._bench.console.say(
            f"{self._bench.title}: {rate:.3g} documents a second so far; at this pace scoring takes {expected:.0f} s"
            + (
                f", more than ttt.max_seconds={self._limit:g}: it will end with a part of the text unscored"
                if short
                else ""
            )
        )

    def tell(self, task: Task, always: bool = False, **where: object) -> None:
        """Show and log what the positions scored so far cost. `where` goes into the event. On several processes the
        figure is of the positions that this one knows of."""
        sofar = self._scorer.ledger.running()
        if not sofar.bytes:
            return
        task.update(sofar.tokens, bpb_so_far=sofar.val_bpb)
        if always or self.done - self._told >= self._total / LINES:
            self._told = self.done
            event = {"event": "score", "stage": self._bench.title, "tokens": sofar.tokens, "bpb_so_far": sofar.val_bpb}
            self._bench.log({**event, "score_seconds": self.elapsed(), **where})

    def stop(self) -> None:
        """Leave out what is not scored; the scorer's coverage says so."""
        self._scorer.synchronise()
        self._scorer.leave_out(self._scorer.ledger.unscored(), self._why)
        found = self._scorer.coverage
        why = "asked to end" if self._why == INTERRUPTED else f"ttt.max_seconds={self._limit:g} ran out"
        self._bench.console.say(
            f"{self._bench.title}: {why} with {found.documents} of "
            f"{found.num_documents} documents scored; {found.left_out} positions are left out, so this is no score of "
            "the validation text"
        )

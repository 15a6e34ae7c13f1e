"""A scorer that writes down who reads its text and who writes to its ledger."""

import sys
from typing import Any

import numpy as np

from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.score.ledger import Ledger
from pgolf.score.scorer import Observer, Scorer

SCORING = ("pgolf.score.scorer", "pgolf.score.ledger", "pgolf.score.mixture")
PRIVATE = frozenset({"_tokens", "_observer", "__dict__"})


def _caller(depth: int) -> tuple[str, str]:
    """Module of a calling frame, and its file and line."""
    frame = sys._getframe(depth + 1)
    return str(frame.f_globals.get("__name__")), f"{frame.f_code.co_filename}:{frame.f_lineno}"


class JournalLedger(Ledger):
    """A ledger that keeps each entry a second time, as it was made. strangers: places that wrote to it and are not
    the scorer."""

    def __init__(self, validation: ValidationSet) -> None:
        super().__init__(validation)
        self.journal = np.full(len(validation.tokens), np.nan)
        self.strangers: set[str] = set()

    def write(self, document: int, start: int, nats: np.ndarray, phase: int) -> None:
        """As `Ledger.write`."""
        module, place = _caller(1)
        if module not in SCORING:
            self.strangers.add(place)
        super().write(document, start, nats, phase)
        self.journal[start : start + len(nats)] = nats


class WatchedScorer(Scorer):
    """The scorer of an audit. peeked: places outside the scorer that read its text past `inputs` and `revealed`."""

    def __init__(self, validation: ValidationSet, group: Group, observer: Observer) -> None:
        self.peeked: set[str] = set()
        super().__init__(validation, group, observer)
        self.ledger: JournalLedger = JournalLedger(validation)

    def __getattribute__(self, name: str) -> Any:
        if name in PRIVATE:
            module, place = _caller(1)
            if module not in SCORING:
                super().__getattribute__("peeked").add(place)
        return super().__getattribute__(name)

"""The append-only record of what each position cost. The reported score is its sum and nothing else."""

import math
from dataclasses import dataclass

import numpy as np

from pgolf.data.validation import ValidationSet


class RuleBroken(Exception):
    """A strategy tried something that the validity conditions forbid. `condition` is C1, C2, C3 or C4."""

    def __init__(self, condition: str, message: str) -> None:
        self.condition = condition
        super().__init__(f"{condition}: {message}")


@dataclass(frozen=True)
class Total:
    """What a set of positions cost together."""

    tokens: int
    bytes: int
    nats: float

    @property
    def val_loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def val_bpb(self) -> float:
        """Bits per byte of original text."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Coverage:
    """Which positions a total stands for. `policy` names the rule; only `every_token` is a score of the text.

    documents: documents of which every position was scored, of num_documents. left_out: positions that were not.
    """

    policy: str
    documents: int
    num_documents: int
    left_out: int


EVERY_TOKEN = "every_token"
SUMMING_TOLERANCE = 1e-9
"""Relative; a running sum of float64 and an exact one differ by less."""
SCAN = 4096
"""Positions that are looked at together when a document's next one is sought."""


class Ledger:
    """One entry per scored position, written once, in order within each document.

    Position p (1 <= p < n) is the prediction of token p from the tokens before it in its document. The first token of
    a document is charged to the document before it, as in the published records (it costs nats, stands for no bytes);
    token 0 is given. `starts` and `ends` bound what is scored left to right: the documents, or all of the text after
    `join`. Inside an opened region (`open`) the order is free.
    """

    def __init__(self, validation: ValidationSet) -> None:
        count = len(validation.tokens)
        self.token_bytes = validation.token_bytes.astype(np.int64)
        self.token_bytes.flags.writeable = False
        self.starts = validation.document_starts.astype(np.int64)
        self.ends = np.append(self.starts[1:] + 1, count)
        self._spans = list(zip(self.starts + 1, self.ends, strict=True))
        self.left_out = np.zeros(count, dtype=bool)
        self.policy = EVERY_TOKEN
        self._opened = (0, 0)
        self._nats = np.full(count, np.nan)
        self.order = np.full(count, -1, dtype=np.int64)
        self.phase = np.full(count, -1, dtype=np.int64)
        self._next = self.starts + 1
        self._written = 0
        self._fresh = np.zeros(count, dtype=bool)
        self._running = [0, 0, 0.0]

    @property
    def nats(self) -> np.ndarray:
        """float64 [n]: what each position cost, NaN where it has no entry. Read-only: entries are added by `write`."""
        shown = self._nats.view()
        shown.flags.writeable = False
        return shown

    @property
    def num_documents(self) -> int:
        """Documents in the validation text; 1 after `join`."""
        return len(self.starts)

    def join(self) -> None:
        """Treat the whole text as one document from now on: what is before a document may be read as its context.

        Raises ValueError when something was scored already.
        """
        if self._written:
            raise ValueError("documents can be joined only before anything is scored")
        self.starts, self.ends = np.zeros(1, dtype=np.int64), np.array([len(self.nats)])
        self._next = self.starts + 1

    def open(self, start: int, end: int) -> None:
        """Let positions [start, end) be scored in any order and read as context before they are; never learned from.

        Replaces the region opened before. Each position is still charged once.
        """
        self._opened = (start, end)

    def leave_out(self, positions: np.ndarray, policy: str) -> None:
        """Declare that `positions` (indices or mask) will not be scored, by the rule `policy`: the total then says so.

        They can be neither scored nor learned from. Raises ValueError for positions that were scored already.
        """
        mask = np.zeros(len(self.nats), dtype=bool)
        mask[positions] = True
        mask[0] = False
        if np.isfinite(self.nats[mask]).any():
            raise ValueError("positions that were scored cannot be left out")
        if mask.any():
            self.left_out |= mask
            self.policy = policy
            for document in range(len(self.starts)):
                self._advance(document)

    def unscored(self) -> np.ndarray:
        """Mask of the positions that have no entry; the given token 0 is not one."""
        mask = np.isnan(self.nats)
        mask[0] = False
        return mask

    def coverage(self) -> Coverage:
        """What the entries so far stand for."""
        missing = self.unscored()
        whole = sum(not missing[start:end].any() for start, end in self._spans)
        return Coverage(self.policy, int(whole), len(self._spans), int(missing.sum()))

    def write(self, document: int, start: int, nats: np.ndarray, phase: int) -> None:
        """Enter the cost of positions start, start + 1, ... of `document`.

        Raises RuleBroken (C4) when they were scored before, leave a gap, are left out, or run past the document's end.
        """
        end = start + len(nats)
        expected = self._next[document]
        if start < expected or np.isfinite(self.nats[start:end]).any():
            raise RuleBroken("C4", f"position {start} of document {document} was scored already")
        if self.left_out[start:end].any():
            raise RuleBroken("C4", f"positions [{start}, {end}) were declared as left out ({self.policy})")
        free = self._opened[0] <= start and end <= self._opened[1]
        if (start > expected and not free) or end > self.ends[document]:
            raise RuleBroken(
                "C4",
                f"document {document} goes on at position {expected} up to {self.ends[document]}, not [{start}, {end})",
            )
        if not np.isfinite(nats).all():
            raise RuleBroken("C2", f"positions [{start}, {end}) of document {document} have no finite cost")
        self._nats[start:end] = nats
        self.order[start:end] = self._written + np.arange(len(nats))
        self.phase[start:end] = phase
        self._advance(document)
        self._written += len(nats)
        self._fresh[start:end] = True
        self._count(slice(start, end))

    def committed(self, document: int, start: int, end: int) -> bool:
        """Whether positions [start, end) of `document` have all been scored (its first token is always known)."""
        known = self.starts[document] <= start and end <= self._next[document]
        return bool(known and not self.left_out[start:end].any())

    def readable(self, document: int, start: int, end: int) -> bool:
        """Whether tokens [start, end) may be read as context: scored, or inside the opened region."""
        opened, closed = self._opened
        if opened < end <= closed:
            end = max(start, opened)
        return start == end or self.committed(document, start, end)

    def fresh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Entries written since the last merge: mask, nats, order, phase, each float64 [n] and 0 where nothing is
        new."""
        mask = self._fresh.astype(np.float64)
        return mask, np.where(self._fresh, self.nats, 0.0), self.order * mask, self.phase * mask

    def merge(self, mask: np.ndarray, nats: np.ndarray, order: np.ndarray, phase: np.ndarray) -> None:
        """Take in the sums over all processes of what `fresh` gave.

        Raises RuleBroken (C4) when two processes scored the same position.
        """
        if (mask > 1).any():
            raise RuleBroken("C4", f"position {int(np.argmax(mask > 1))} was scored by two processes")
        new = mask > 0
        if np.isfinite(self.nats[new & ~self._fresh]).any():
            raise RuleBroken("C4", "a position that was scored before was scored again by another process")
        others = new & ~self._fresh
        self._nats[new], self.order[new], self.phase[new] = nats[new], order[new], phase[new]
        self._count(others)
        self._fresh[:] = False
        for document in range(len(self.starts)):
            self._advance(document)

    def _advance(self, document: int) -> None:
        """Move the document's next position past everything that is scored or left out."""
        position, end = int(self._next[document]), int(self.ends[document])
        while position < end:  # by blocks: a joined text is one long document
            stop = min(position + SCAN, end)
            done = np.isfinite(self.nats[position:stop]) | self.left_out[position:stop]
            if not done.all():
                position += int(np.argmin(done))
                break
            position = stop
        self._next[document] = position

    def _count(self, entries: slice | np.ndarray) -> None:
        nats = self.nats[entries]
        self._running[0] += len(nats)
        self._running[1] += int(self.token_bytes[entries].sum())
        self._running[2] += float(nats.sum())

    def running(self) -> Total:
        """What has been scored so far, for progress: kept as a running sum, so it costs nothing to ask."""
        tokens, num_bytes, nats = self._running
        return Total(int(tokens), int(num_bytes), nats)

    def complete(self) -> bool:
        """Whether every position of every document has been scored, but for those declared as left out."""
        return bool((self._next == self.ends).all())

    def total(self) -> Total:
        """Tokens, bytes and nats of everything scored so far, summed exactly.

        Raises RuleBroken (C4) when that is not what was entered: entries were changed afterwards.
        """
        scored = np.isfinite(self.nats)
        total = Total(int(scored.sum()), int(self.token_bytes[scored].sum()), math.fsum(self.nats[scored]))
        entered = self.running()
        apart = abs(total.nats - entered.nats) > SUMMING_TOLERANCE * max(1.0, abs(entered.nats))
        if apart or (total.tokens, total.bytes) != (entered.tokens, entered.bytes):
            raise RuleBroken(
                "C4",
                f"the ledger holds {total.tokens} entries of {total.nats:.6f} nats over {total.bytes} bytes, but "
                f"{entered.tokens} of {entered.nats:.6f} over {entered.bytes} were entered: it was edited afterwards",
            )
        return total

    def per_document(self) -> dict[str, np.ndarray]:
        """One row per document: tokens, bytes, nats, order (of its first entry), phase (of its last).

        A document with positions that were left out has nats NaN; an empty one order and phase -1.
        """
        spans = self._spans
        return {
            "tokens": np.array([end - start for start, end in spans]),
            "bytes": np.array([self.token_bytes[start:end].sum() for start, end in spans]),
            "nats": np.array([math.fsum(self.nats[start:end]) for start, end in spans]),
            "order": np.array([self.order[start] if start < end else -1 for start, end in spans]),
            "phase": np.array([self.phase[end - 1] if start < end else -1 for start, end in spans]),
        }

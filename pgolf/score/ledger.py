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


class Ledger:
    """One entry per scored position, written once, in order within each document.

    Position p (1 <= p < n) is the prediction of token p from the tokens before it in its document. The first token of
    a document is charged to the document before it, as in the published records (it costs nats, stands for no bytes);
    token 0 is given.
    """

    def __init__(self, validation: ValidationSet) -> None:
        count = len(validation.tokens)
        self.token_bytes = validation.token_bytes.astype(np.int64)
        self.starts = validation.document_starts.astype(np.int64)
        self.ends = np.append(self.starts[1:] + 1, count)
        self.nats = np.full(count, np.nan)
        self.order = np.full(count, -1, dtype=np.int64)
        self.phase = np.full(count, -1, dtype=np.int64)
        self._next = self.starts + 1
        self._written = 0
        self._fresh = np.zeros(count, dtype=bool)
        self._running = [0, 0, 0.0]

    @property
    def num_documents(self) -> int:
        """Documents in the validation text."""
        return len(self.starts)

    def write(self, document: int, start: int, nats: np.ndarray, phase: int) -> None:
        """Enter the cost of positions start, start + 1, ... of `document`.

        Raises RuleBroken (C4) when they were scored before, leave a gap, or run past the document's end.
        """
        end = start + len(nats)
        expected = self._next[document]
        if start < expected:
            raise RuleBroken("C4", f"position {start} of document {document} was scored already")
        if start > expected or end > self.ends[document]:
            raise RuleBroken(
                "C4",
                f"document {document} goes on at position {expected} up to {self.ends[document]}, not [{start}, {end})",
            )
        if not np.isfinite(nats).all():
            raise RuleBroken("C2", f"positions [{start}, {end}) of document {document} have no finite cost")
        self.nats[start:end] = nats
        self.order[start:end] = self._written + np.arange(len(nats))
        self.phase[start:end] = phase
        self._next[document] = end
        self._written += len(nats)
        self._fresh[start:end] = True
        self._count(slice(start, end))

    def committed(self, document: int, start: int, end: int) -> bool:
        """Whether positions [start, end) of `document` have all been scored (its first token is always known)."""
        return bool(self.starts[document] <= start and end <= self._next[document])

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
        self.nats[new], self.order[new], self.phase[new] = nats[new], order[new], phase[new]
        self._count(others)
        self._fresh[:] = False
        scored = np.isfinite(self.nats)
        for document, (start, end) in enumerate(zip(self.starts, self.ends, strict=True)):
            done = scored[start + 1 : end]
            self._next[document] = start + 1 + (len(done) if done.all() else int(np.argmin(done)))

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
        """Whether every position of every document has been scored."""
        return bool((self._next == self.ends).all())

    def total(self) -> Total:
        """Tokens, bytes and nats of everything scored so far, summed exactly."""
        scored = np.isfinite(self.nats)
        return Total(int(scored.sum()), int(self.token_bytes[scored].sum()), math.fsum(self.nats[scored]))

    def per_document(self) -> dict[str, np.ndarray]:
        """One row per document: tokens, bytes, nats, order (of its first entry), phase (of its last)."""
        spans = list(zip(self.starts + 1, self.ends, strict=True))
        return {
            "tokens": np.array([end - start for start, end in spans]),
            "bytes": np.array([self.token_bytes[start:end].sum() for start, end in spans]),
            "nats": np.array([math.fsum(self.nats[start:end]) for start, end in spans]),
            "order": np.array([self.order[start] for start, _ in spans]),
            "phase": np.array([self.phase[end - 1] for _, end in spans]),
        }

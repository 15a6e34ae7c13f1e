"""Strategies that leave the weights alone."""

import copy

from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.strategy import Bench, score_windows


class Chunked:
    """Every document is cut into pieces of `sequence_tokens` that do not see each other; every position is scored once.

    The published diagnostic evaluation, without its dropping of tail batches. rows: pieces per forward.
    """

    def __init__(self, *, sequence_tokens: int, rows: int) -> None:
        if sequence_tokens < 1 or rows < 1:
            raise ValueError(f"ttt.sequence_tokens={sequence_tokens} and ttt.rows={rows} must be at least 1")
        self.sequence_tokens, self.rows = sequence_tokens, rows

    def miniature(self, documents: int) -> tuple["Chunked", str]:
        """The same with short pieces, so that a sample of short documents has several."""
        small = copy.copy(self)
        small.sequence_tokens, small.rows = min(self.sequence_tokens, 48), min(self.rows, 2)
        return small, f"pieces of {small.sequence_tokens} tokens, {small.rows} at a time"

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents."""
        windows = [
            Window(document, start, start + 1, min(start + self.sequence_tokens + 1, end))
            for document in range(scorer.num_documents)
            for first, end in [scorer.span(document)]
            for start in range(first, end - 1, self.sequence_tokens)
        ]
        score_windows(model, scorer, windows, self.rows, bench)


class Sliding:
    """Windows of `sequence_tokens` that move by `stride` inside a document; all but the first score only their last
    `stride` positions.

    Source: the 2026-03-19 record, made document-aware and without its double scoring of the tail.
    """

    def __init__(self, *, sequence_tokens: int, stride: int, rows: int) -> None:
        if not 0 < stride <= sequence_tokens or rows < 1:
            raise ValueError(
                f"ttt.stride={stride} must lie between 1 and ttt.sequence_tokens={sequence_tokens}; "
                f"ttt.rows={rows} must be at least 1"
            )
        self.sequence_tokens, self.stride, self.rows = sequence_tokens, stride, rows

    def miniature(self, documents: int) -> tuple["Sliding", str]:
        """The same with short windows, so that they slide within a sample of short documents."""
        small = copy.copy(self)
        small.sequence_tokens = min(self.sequence_tokens, 48)
        small.stride = max(1, self.stride * small.sequence_tokens // self.sequence_tokens)
        small.rows = min(self.rows, 2)
        return small, f"windows of {small.sequence_tokens} tokens, stride {small.stride}, {small.rows} at a time"

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents."""
        windows = []
        for document in range(scorer.num_documents):
            first, end = scorer.span(document)
            score_start = first + 1
            while score_start < end:
                room = self.sequence_tokens if score_start == first + 1 else self.stride
                score_end = min(score_start + room, end)
                context = max(first, score_end - 1 - self.sequence_tokens)
                windows.append(Window(document, context, score_start, score_end))
                score_start = score_end
        score_windows(model, scorer, windows, self.rows, bench)

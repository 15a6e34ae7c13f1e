"""Strategies that leave the weights alone."""

import copy
from typing import Literal

import numpy as np
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.score.mixture import Experts
from pgolf.score.mixture import miniature as small_experts
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.budget import Budget, check_seconds
from pgolf.ttt.strategy import Bench, packed_log_probs
from pgolf.ttt.walk import score_batches, score_windows
from pgolf.ttt.windows import by_chunk, pieces, sliding_in_documents, sliding_over_text, spans

Documents = Literal["isolated", "joined"]
Coverage = Literal["every_token", "whole_batches"]
WHOLE_BATCHES = "whole_batches"


class Chunked:
    """Every document is cut into pieces of `sequence_tokens` that do not see each other; every position is scored once.

    The published diagnostic evaluation. rows: pieces per forward. documents: `joined` takes the whole text as one
    document, as before PR 1530; `packed` lays the pieces of a batch in one row, as published after it, where a smear
    gate reads the token before a piece (attention does not). batch_tokens: cut at its multiples too, where the
    published evaluation begins another batch. coverage: `whole_batches` leaves out what does not fill the last batch,
    as published from PR 1530 on; that is no score of the text, and the summary says so. experts: what is mixed in, see
    `pgolf.score.mixture`. max_seconds: see `Budget`.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        rows: int,
        documents: Literal["isolated", "joined", "packed"] = "isolated",
        batch_tokens: int | None = None,
        coverage: Coverage = "every_token",
        experts: Experts | None = None,
        max_seconds: float | None = None,
    ) -> None:
        if sequence_tokens < 1 or rows < 1:
            raise ValueError(f"ttt.sequence_tokens={sequence_tokens} and ttt.rows={rows} must be at least 1")
        if batch_tokens is not None and (batch_tokens < 1 or batch_tokens % sequence_tokens):
            raise ValueError(
                f"ttt.batch_tokens={batch_tokens} is not a multiple of ttt.sequence_tokens={sequence_tokens}"
            )
        if batch_tokens is None and (coverage == WHOLE_BATCHES or documents == "packed"):
            what = "ttt.documents=packed" if documents == "packed" else "ttt.coverage=whole_batches"
            raise ValueError(f"{what} needs ttt.batch_tokens: how much text a batch is")
        check_seconds(max_seconds)
        self.sequence_tokens, self.rows, self.documents = sequence_tokens, rows, documents
        self.batch_tokens, self.coverage, self.experts = batch_tokens, coverage, experts
        self.max_seconds = max_seconds

    def miniature(self, documents: int) -> tuple["Chunked", str]:
        """The same with short pieces, so that a sample of short documents has several."""
        small = copy.copy(self)
        small.sequence_tokens, small.rows = min(self.sequence_tokens, 48), min(self.rows, 2)
        if self.batch_tokens is not None:
            small.batch_tokens = small.sequence_tokens
        small.max_seconds = None
        small.experts, also = small_experts(self.experts)
        return small, f"pieces of {small.sequence_tokens} tokens, {small.rows} at a time{also}"

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents."""
        scorer.mix(self.experts)
        if self.documents == "joined":
            scorer.join_documents()
        documents = spans(scorer)
        windows = pieces(documents, self.sequence_tokens, self.batch_tokens)
        if self.coverage == WHOLE_BATCHES:
            assert self.batch_tokens is not None  # the constructor saw to it
            targets = documents[-1][1] - 1
            kept = targets // self.batch_tokens * self.batch_tokens
            scorer.leave_out(np.arange(kept + 1, targets + 1), WHOLE_BATCHES)
            windows = [window for window in windows if window.score_end <= kept + 1]
        if self.documents == "packed":
            self._score_packed(model, scorer, windows, bench)
            return
        _score(model, scorer, windows, self.rows, bench, self.max_seconds)

    def _score_packed(self, model: GPT, scorer: Scorer, windows: list[Window], bench: Bench) -> None:
        """Batch by batch, each one flat row; processes take batches in turn."""
        assert self.batch_tokens is not None  # the constructor saw to it
        scorer.documents = "packed"
        scorer.open(0, len(scorer.ledger.nats))
        mine = by_chunk(windows, self.batch_tokens)[scorer.group.rank :: scorer.group.world_size]
        budget = Budget(self.max_seconds, sum(window.width for window in windows), scorer, bench)

        def forward(batch: list[Window]) -> Tensor:
            return packed_log_probs(model, scorer, batch, bench.attention, bench.forward)

        with bench.console.task(budget.title, sum(window.length for window in windows)) as task:
            if not score_batches(scorer, mine, forward, task, budget):
                budget.stop()


class Sliding:
    """Windows of `sequence_tokens` that move by `stride`; all but the first score only their last `stride` positions.

    windows: `per_document` begins anew in every document; `over_text` takes multiples of the stride in the whole text,
    as published. documents: `isolated` ends a context at its document's start (PR 1530 on); `joined` does not.
    experts: what is mixed in, see `pgolf.score.mixture`. max_seconds: see `Budget`.

    Source: the 2026-03-19 record, without its double scoring of the tail; `over_text` is that of PR 1394 and after.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        stride: int,
        rows: int,
        windows: Literal["per_document", "over_text"] = "per_document",
        documents: Documents = "isolated",
        experts: Experts | None = None,
        max_seconds: float | None = None,
    ) -> None:
        if not 0 < stride <= sequence_tokens or rows < 1:
            raise ValueError(
                f"ttt.stride={stride} must lie between 1 and ttt.sequence_tokens={sequence_tokens}; "
                f"ttt.rows={rows} must be at least 1"
            )
        self.sequence_tokens, self.stride, self.rows = sequence_tokens, stride, rows
        check_seconds(max_seconds)
        self.windows, self.documents, self.experts = windows, documents, experts
        self.max_seconds = max_seconds

    def miniature(self, documents: int) -> tuple["Sliding", str]:
        """The same with short windows, so that they slide within a sample of short documents."""
        small = copy.copy(self)
        small.sequence_tokens = min(self.sequence_tokens, 48)
        small.stride = max(1, self.stride * small.sequence_tokens // self.sequence_tokens)
        small.rows = min(self.rows, 2)
        small.max_seconds = None
        small.experts, also = small_experts(self.experts)
        what = f"windows of {small.sequence_tokens} tokens, stride {small.stride}, {small.rows} at a time"
        return small, what + also

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents."""
        scorer.mix(self.experts)
        if self.documents == "joined":
            scorer.join_documents()
        cut = sliding_in_documents if self.windows == "per_document" else sliding_over_text
        _score(model, scorer, cut(spans(scorer), self.sequence_tokens, self.stride), self.rows, bench, self.max_seconds)


def _score(
    model: GPT, scorer: Scorer, windows: list[Window], rows: int, bench: Bench, max_seconds: float | None
) -> None:
    """Score windows under fixed weights. Those of a joined text, which no document separates, are opened together."""
    opened = scorer.documents == "joined"
    if opened:
        scorer.open(*scorer.span(0))
    score_windows(model, scorer, windows, rows, bench, opened=opened, max_seconds=max_seconds)

"""Score-first test-time training of the whole model, a chunk of the text at a time.

Source: the 2026-03-23 record (PR 549) and PR 1413, 1493, 1514 (spec: chunks of 32,768 tokens, momentum kept over the
whole text). The record's own sliding windows score some of the last tokens twice; here each is scored once.
"""

import copy
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.score.mixture import Experts
from pgolf.score.mixture import miniature as small_experts
from pgolf.score.scorer import Scorer
from pgolf.ttt.budget import Budget, check_seconds
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.strategy import Bench
from pgolf.ttt.walk import walk
from pgolf.ttt.windows import by_chunk, sliding_over_text, spans


class ScoreFirstSGD:
    """Sliding windows over the text, chunk by chunk: a chunk is scored, then trained on, then the next is scored.

    sequence_tokens, stride, rows, documents: see `Sliding`. sgd: the steps; its chunk_tokens are the chunk's, its
    momentum lasts, its rate falls as a cosine over the chunks. With documents=joined a chunk's windows see the text
    before it. Processes share the windows of a chunk and the rows of a step. max_seconds: see `Budget`. experts: what
    is mixed in, see `pgolf.score.mixture`.
    """

    def __init__(
        self,
        *,
        sequence_tokens: int,
        stride: int,
        rows: int,
        sgd: GlobalSGD,
        documents: Literal["isolated", "joined"] = "joined",
        max_seconds: float | None = None,
        experts: Experts | None = None,
    ) -> None:
        if not 0 < stride <= sequence_tokens or rows < 1:
            raise ValueError(
                f"ttt.stride={stride} must lie between 1 and ttt.sequence_tokens={sequence_tokens}; "
                f"ttt.rows={rows} must be at least 1"
            )
        check_seconds(max_seconds)
        self.sequence_tokens, self.stride, self.rows = sequence_tokens, stride, rows
        self.sgd, self.documents, self.max_seconds, self.experts = sgd, documents, max_seconds, experts

    def miniature(self, documents: int) -> tuple["ScoreFirstSGD", str]:
        """The same with short windows and chunks, so that a sample of a few documents has several."""
        small = copy.copy(self)
        small.sgd = copy.copy(self.sgd)
        small.sequence_tokens = small.sgd.sequence_tokens = min(self.sequence_tokens, 32)
        small.stride = max(1, self.stride * small.sequence_tokens // self.sequence_tokens)
        small.sgd.chunk_tokens = min(self.sgd.chunk_tokens, 2 * small.sequence_tokens)
        small.rows, small.max_seconds = min(self.rows, 2), None
        what = (
            f"windows of {small.sequence_tokens} tokens, stride {small.stride}, chunks of {small.sgd.chunk_tokens} "
            f"tokens, {small.sgd.epochs} passes over each"
        )
        small.experts, also = small_experts(self.experts)
        return small, what + also

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all of the text, learning from every chunk but the last."""
        scorer.mix(self.experts)
        text_end = scorer.span(scorer.num_documents - 1)[1]
        documents = spans(scorer)
        if self.documents == "joined":
            scorer.join_documents()
            documents = spans(scorer)
        chunks = by_chunk(sliding_over_text(documents, self.sequence_tokens, self.stride), self.sgd.chunk_tokens)
        budget = Budget(self.max_seconds, sum(w.width for windows in chunks for w in windows), scorer, bench)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.sgd.lr, momentum=self.sgd.momentum)
        model.requires_grad_(False)
        with bench.console.task(budget.title, text_end - 1) as task:
            for index, windows in enumerate(chunks):
                if self.documents == "joined":
                    scorer.open(min(w.score_start for w in windows), max(w.score_end for w in windows))
                shared = (model, scorer, windows, self.rows, bench, task, budget, index)
                whole = walk(*shared, opened=self.documents == "joined")
                if index + 1 == len(chunks) and whole:
                    return
                if not whole or budget.spent():
                    budget.stop()
                    return
                budget.tell(task, always=True, chunk=index)
                lr = self.sgd.rate(index, len(chunks))
                start = index * self.sgd.chunk_tokens
                tokens = _tokens(scorer, start, min(start + self.sgd.chunk_tokens + 1, text_end))
                self.sgd.train(model, optimizer, lr, tokens, scorer.group, bench.attention)


def _tokens(scorer: Scorer, start: int, end: int) -> Tensor:
    """Tokens [start, end) of the text, all of them scored; one document hands over to the next at its first token."""
    parts = []
    documents = spans(scorer)
    starts = [first for first, _ in documents] + [documents[-1][1]]
    for document, (first, after) in enumerate(pairwise(starts)):
        if max(first, start) < min(after, end):
            parts.append(scorer.revealed(document, max(first, start), min(after, end)))
    return torch.cat(parts)

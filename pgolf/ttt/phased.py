"""Score-first test-time training: an adapter per document, and global SGD phases on what has been scored.

Source: PR 1530 (adapters), 1610 (one pause), 1626 (phases). Assignment to processes is fixed, so a score can be had
again and does not depend on how many processes share the work (the published scripts claim batches through a counter
file).
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import BatchedLora, LoraSettings
from pgolf.ttt.strategy import Bench, window_log_probs


@dataclass(frozen=True)
class DocumentBatch:
    """Documents of similar length that are scored together, longest first; index counts batches from the shortest
    up."""

    index: int
    documents: tuple[int, ...]


def document_batches(lengths: list[int], rows: int) -> list[DocumentBatch]:
    """Cut documents, sorted by length, into batches of `rows`; the batch with the longest document comes first."""
    ascending = sorted(range(len(lengths)), key=lambda document: lengths[document])
    batches = [
        DocumentBatch(start // rows, tuple(reversed(ascending[start : start + rows])))
        for start in range(0, len(ascending), rows)
    ]
    return sorted(batches, key=lambda batch: -lengths[batch.documents[0]])


def phase_boundaries(num_documents: int, prefix_docs: int, phases: int) -> list[int]:
    """How many documents must be finished before each global phase (published rule: equal parts of the prefix,
    rounded down)."""
    prefix = min(num_documents, prefix_docs)
    return [prefix * (phase + 1) // phases for phase in range(phases)]


class Phased:
    """Per-document adapters, score first; after each of `phases` equal parts of the first `prefix_docs` finished
    documents, one pass of SGD over all finished documents updates the model itself.

    chunk: positions scored between two adapter steps. context_tokens: longest window a chunk is predicted from. rows:
    documents per batch. phases=0: adapters only (`ttt=lora`). Raises ValueError for sizes below 1.
    """

    def __init__(
        self,
        *,
        phases: int,
        prefix_docs: int,
        chunk: int,
        context_tokens: int,
        rows: int,
        lora: LoraSettings,
        sgd: GlobalSGD,
    ) -> None:
        if phases < 0 or min(prefix_docs, chunk, rows) < 1:
            raise ValueError("ttt.phases must be 0 or more; ttt.prefix_docs, ttt.chunk and ttt.rows at least 1")
        if phases > prefix_docs:
            raise ValueError(f"ttt.phases={phases} needs at least as many ttt.prefix_docs, not {prefix_docs}")
        if context_tokens < chunk:
            raise ValueError(f"ttt.context_tokens={context_tokens} is shorter than ttt.chunk={chunk}")
        self.phases, self.prefix_docs, self.chunk, self.context_tokens = phases, prefix_docs, chunk, context_tokens
        self.rows, self.lora, self.sgd = rows, lora, sgd

    def miniature(self, documents: int) -> tuple["Phased", str]:
        """The same procedure, sized so that batches of several documents, several chunks, windows that are cut and a
        global phase all occur within a few documents; and what was made smaller. For the audit's sample."""
        small = copy.copy(self)
        small.sgd = copy.copy(self.sgd)
        small.sgd.chunk_tokens = small.sgd.sequence_tokens = min(32, self.sgd.sequence_tokens)
        small.chunk = min(self.chunk, 32)
        small.context_tokens = min(self.context_tokens, 2 * small.chunk)
        small.rows = min(self.rows, 2)
        small.prefix_docs = max(1, documents - 1)
        small.phases = min(self.phases, small.prefix_docs)
        what = (
            f"{small.rows} documents a batch, {small.phases} phases, chunks of {small.chunk} tokens seen from "
            f"{small.context_tokens}, SGD steps of {small.sgd.chunk_tokens} tokens"
        )
        return small, what

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents, longest batch first."""
        lengths = [end - start for start, end in map(scorer.span, range(scorer.num_documents))]
        queue = document_batches(lengths, self.rows)
        boundaries = phase_boundaries(len(lengths), self.prefix_docs, self.phases)
        finished: list[DocumentBatch] = []
        count = phase = 0
        total = sum(length - 1 for length in lengths)
        model.requires_grad_(False)
        with bench.console.task(bench.title, total) as task:
            for position, batch in enumerate(queue):
                if position % scorer.group.world_size == scorer.group.rank:
                    self._score_batch(model, scorer, batch, phase, bench)
                finished.append(batch)
                count += len(batch.documents)
                sofar = scorer.ledger.running()
                if sofar.bytes:
                    task.update(sofar.tokens, bpb_so_far=sofar.val_bpb)
                    bench.log({"event": "score", "stage": bench.title, "documents": count, "bpb_so_far": sofar.val_bpb})
                while phase < self.phases and count >= boundaries[phase] and count < len(lengths):
                    scorer.synchronise()
                    steps = self.sgd.run(model, scorer, _learnable(finished, boundaries[phase]), bench)
                    phase += 1
                    bench.console.say(
                        f"{bench.title}: global phase {phase} of {self.phases} after {count} documents: {steps} steps"
                    )
        if phase < self.phases:
            bench.console.say(
                f"{bench.title}: only {phase} of {self.phases} global phases came before the last batch of documents; "
                "fewer documents a batch (ttt.rows) or a shorter prefix (ttt.prefix_docs) make room for more."
            )
        scorer.synchronise()

    def _windows(self, scorer: Scorer, batch: DocumentBatch) -> Iterator[list[Window]]:
        """Chunk by chunk, the windows of the documents that reach so far (always the first ones of the batch)."""
        spans = [scorer.span(document) for document in batch.documents]
        start = 1
        while True:
            windows = [
                Window(
                    document,
                    max(first, min(first + start + self.chunk, end) - 1 - self.context_tokens),
                    first + start,
                    min(first + start + self.chunk, end),
                )
                for document, (first, end) in zip(batch.documents, spans, strict=True)
                if first + start < end
            ]
            if not windows:
                return
            yield windows
            start += self.chunk

    def _score_batch(self, model: GPT, scorer: Scorer, batch: DocumentBatch, phase: int, bench: Bench) -> None:
        settings = self.lora
        adapters = BatchedLora(model, len(batch.documents), settings, bench.seed, f"ttt/lora/{batch.index}")
        optimizer = torch.optim.AdamW(
            adapters.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        for windows in self._windows(scorer, batch):
            goes_on = torch.tensor(
                [w.score_end < scorer.span(w.document)[1] for w in windows], device=scorer.group.device
            )
            learns = bool(goes_on.any())
            with torch.set_grad_enabled(learns):
                log_probs = window_log_probs(model, scorer, windows, bench.attention, adapters)
                nats = scorer.score(windows, log_probs, phase)
            if learns:
                optimizer.zero_grad(set_to_none=True)
                _adapter_loss(nats, goes_on, self.chunk).backward()
                optimizer.step()


def _adapter_loss(nats: Tensor, goes_on: Tensor, chunk: int) -> Tensor:
    """Sum over the documents that go on of their mean cost in this (full) chunk."""
    return (nats.sum(dim=1) * goes_on).sum() / chunk


def _learnable(finished: list[DocumentBatch], limit: int) -> list[int]:
    """Finished documents in the published order (shortest batch first), cut to `limit`."""
    ascending = sorted(finished, key=lambda batch: batch.index)
    return [document for batch in ascending for document in reversed(batch.documents)][:limit]

"""Score-first test-time training: an adapter per document, and global SGD phases on what has been scored.

Source: PR 1530 (adapters), 1610 (one pause), 1626 (phases), 1767 (A that goes on), 2014 (chunks by length). Assignment
to processes is fixed, so a score can be had again and does not depend on how many processes share the work (the
published scripts claim batches through a counter file).

The score does depend on the order of the documents (condition C1 holds in that order: nothing is predicted from what
is scored later). Longest first, as published, means that a short document near the beginning of the text is predicted
by weights that learned from long documents behind it; `order: file` keeps the order of the text.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from pgolf.errors import UserError
from pgolf.model.gpt import GPT
from pgolf.score.mixture import Experts
from pgolf.score.mixture import miniature as small_experts
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.batches import ChunkSizes, DocumentBatch, Order, document_batches, learnable, phase_boundaries
from pgolf.ttt.budget import Budget, check_seconds
from pgolf.ttt.e2e import InnerSteps, cost_of_scored
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import BatchedLora, LoraRows, LoraSettings
from pgolf.ttt.strategy import Bench, window_log_probs

InitialA = Callable[[DocumentBatch, int], Mapping[str, Tensor]]
"""(batch, phase) -> A of its documents by place (the keys of `BatchedLora.down`), where it is not drawn here."""


class Phased:
    """Per-document adapters, score first; after each of `phases` equal parts of the first `prefix_docs` finished
    documents, one pass of SGD over all finished documents updates the model itself, at most once after a batch.

    chunk: positions scored between two adapter steps; short_chunks: other sizes for batches of short documents, see
    `ChunkSizes`. context_tokens: longest window a chunk is predicted from. rows: documents per batch. order: see
    `document_batches`. phases=0: adapters only (`ttt=lora`). chains: the batches are dealt out to so many chains in
    turn, and an adapter that goes on from the one before (lora.warm_start) does so within its chain; processes share
    out whole chains, so a score depends on the chains and not on the processes. max_seconds: see `Budget`. inner:
    further steps of the adapters on each chunk (`ttt=e2e`). experts: what is mixed in, see `pgolf.score.mixture`.

    Raises ValueError for sizes below 1. `initial_a` may be set to give the first A of the adapters.
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
        short_chunks: list[list[int]] | None = None,
        order: Order = "longest_first",
        chains: int = 8,
        max_seconds: float | None = None,
        inner: InnerSteps | None = None,
        experts: Experts | None = None,
    ) -> None:
        if phases < 0 or min(prefix_docs, chunk, rows, chains) < 1:
            raise ValueError("ttt.phases must be 0 or more; ttt.prefix_docs, chunk, rows and chains at least 1")
        if phases > prefix_docs:
            raise ValueError(f"ttt.phases={phases} needs at least as many ttt.prefix_docs, not {prefix_docs}")
        check_seconds(max_seconds)
        self.chunks = ChunkSizes(chunk, short_chunks or [])
        if context_tokens < self.chunks.largest:
            raise ValueError(f"ttt.context_tokens={context_tokens} is shorter than ttt.chunk={self.chunks.largest}")
        self.phases, self.prefix_docs, self.context_tokens = phases, prefix_docs, context_tokens
        self.rows, self.lora, self.sgd, self.order = rows, lora, sgd, order
        self.chains, self.max_seconds, self.inner, self.experts = chains, max_seconds, inner, experts
        self.initial_a: InitialA | None = None

    def miniature(self, documents: int) -> tuple["Phased", str]:
        """The same procedure, sized so that batches of several documents, several chunks, windows that are cut and a
        global phase all occur within a few documents; and what was made smaller. For the audit's sample."""
        small = copy.copy(self)
        small.sgd = copy.copy(self.sgd)
        small.sgd.sequence_tokens = min(16, self.sgd.sequence_tokens)
        small.sgd.chunk_tokens = 2 * small.sgd.sequence_tokens  # rows for two processes
        small.chunks = self.chunks.at_most(32)
        small.context_tokens = min(self.context_tokens, 2 * small.chunks.largest)
        small.rows = min(self.rows, 2)
        small.chains = min(self.chains, 2) if documents > 2 * small.rows else 1  # one must get two batches to go on
        small.max_seconds = None
        small.prefix_docs = max(1, documents - small.rows)  # the last phase comes before the last batch
        small.phases = min(self.phases, small.prefix_docs)
        what = (
            f"{small.rows} documents a batch, {small.phases} phases, chunks of {small.chunks.largest} tokens seen from "
            f"{small.context_tokens}, SGD steps of {small.sgd.chunk_tokens} tokens"
        )
        if self.inner is not None:
            small.inner = InnerSteps(steps=min(2, self.inner.steps), lr=self.inner.lr)
            what += f", {small.inner.steps} inner steps"
        small.experts, also = small_experts(self.experts)
        return small, what + also

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score all documents, batch by batch. Raises UserError with more processes than chains to share out."""
        scorer.mix(self.experts)
        group = scorer.group
        dealt = self.chains if self.lora.warm_start else group.world_size
        if dealt < group.world_size:
            raise UserError(
                f"{group.world_size} processes cannot share ttt.chains={dealt}: give at least as many chains"
            )
        lengths = [end - start for start, end in map(scorer.span, range(scorer.num_documents))]
        queue = document_batches(lengths, self.rows, self.order, self.chunks)
        phases = _Phases(self, len(lengths))
        learned: dict[int, dict[str, Tensor]] = {}
        work = [sum(window.width for windows in self._windows(scorer, batch) for window in windows) for batch in queue]
        budget = Budget(self.max_seconds, sum(work), scorer, bench)
        model.requires_grad_(False)
        with bench.console.task(budget.title, sum(length - 1 for length in lengths)) as task:
            for position, batch in enumerate(queue):
                chain = position % dealt
                behind = group.world_size - position % group.world_size  # batches of this round that are not counted
                if chain % group.world_size == group.rank:
                    whole = self._score_batch(model, scorer, batch, phases.done, bench, learned, chain, budget, behind)
                    finished = {"finished": phases.count + len(batch.documents), "scored": batch.documents}
                    budget.tell(task, always=True, **(finished if whole else {}))
                budget.done += work[position]
                phases.finished.append(batch)
                last = position + 1 == len(queue)
                if (last or phases.due()) and budget.broken_off():
                    budget.stop()
                    return
                if not last and phases.due():
                    begin = budget.elapsed()
                    phases.learn(model, scorer, bench)
                    learned.clear()
                    span = {"phase": phases.done, "begin": begin, "end": budget.elapsed()}
                    bench.log({"event": "phase", "stage": bench.title, "documents": phases.count, **span})
                if (position + 1) % group.world_size == 0 and not last and budget.spent():
                    budget.stop()
                    return
        scorer.synchronise()
        phases.say_what_is_left(bench)

    def _windows(self, scorer: Scorer, batch: DocumentBatch) -> Iterator[list[Window]]:
        """Chunk by chunk, the windows of the documents that reach so far (always the first ones of the batch)."""
        spans = [scorer.span(document) for document in batch.documents]
        start = 1
        while True:
            windows = [
                Window(
                    document,
                    max(first, min(first + start + batch.chunk, end) - 1 - self.context_tokens),
                    first + start,
                    min(first + start + batch.chunk, end),
                )
                for document, (first, end) in zip(batch.documents, spans, strict=True)
                if first + start < end
            ]
            if not windows:
                return
            yield windows
            start += batch.chunk

    def _first_a(
        self, batch: DocumentBatch, phase: int, before: Mapping[str, Tensor] | None
    ) -> Mapping[str, Tensor] | None:
        """Where the adapters of `batch` begin: at what the chain learned `before`, at what is given, or (None) at a
        draw of their own. A batch of another size than the others never goes on."""
        if before is not None and len(batch.documents) == self.rows:
            return before
        return self.initial_a(batch, phase) if self.initial_a is not None else None

    def _score_batch(
        self,
        model: GPT,
        scorer: Scorer,
        batch: DocumentBatch,
        phase: int,
        bench: Bench,
        learned: dict[int, dict[str, Tensor]],
        chain: int,
        budget: Budget,
        behind: int,
    ) -> bool:
        """One batch; False when the budget broke it off, and the rest of it is not scored."""
        first = self._first_a(batch, phase, learned.get(chain))
        rows = len(batch.documents)
        adapters = BatchedLora(model, rows, self.lora, bench.seed, f"ttt/lora/{batch.index}", first)
        optimizer = self.lora.optimizer(list(adapters.parameters()))
        done = 0
        for windows in self._windows(scorer, batch):
            if done and budget.break_off(float(done * behind)):
                return False
            done += sum(window.width for window in windows)
            # the longest documents of a batch come first, so those that end here come last; they learn nothing more
            going = sum(window.score_end < scorer.span(window.document)[1] for window in windows)
            nats = scorer.score(windows, _log_probs(model, scorer, windows, going, bench, adapters), phase)
            if going:
                learning = windows[:going], bench, adapters.rows(0, going)
                self._learn(optimizer, nats[:going], partial(_again, model, scorer, *learning))
        if self.lora.warm_start and rows == self.rows:
            learned[chain] = adapters.learned()
        return True

    def _learn(self, optimizer: torch.optim.Optimizer, nats: Tensor, again: Callable[[], Tensor]) -> None:
        """The step on a chunk that cost `nats` [n, chunk], and before it the inner ones, each on what `again` gives."""

        def step(nats: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            nats.mean(dim=1).sum().backward()
            optimizer.step()

        if self.inner is not None:
            nats = self.inner.take(optimizer, step, again, nats)
        step(nats)


class _Phases:
    """How far the global phases have come, the same on every process."""

    def __init__(self, strategy: Phased, num_documents: int) -> None:
        self._strategy = strategy
        self._boundaries = phase_boundaries(num_documents, strategy.prefix_docs, strategy.phases)
        self.done = 0
        self.finished: list[DocumentBatch] = []

    @property
    def count(self) -> int:
        """Finished documents."""
        return sum(len(batch.documents) for batch in self.finished)

    def due(self) -> bool:
        """Whether enough documents are finished for the next phase."""
        return self.done < len(self._boundaries) and self.count >= self._boundaries[self.done]

    def learn(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """The next phase, on what all processes have scored."""
        scorer.synchronise()
        documents = learnable(self.finished, self._boundaries[self.done])
        steps = self._strategy.sgd.run(model, scorer, documents, bench)
        self.done += 1
        bench.console.say(
            f"{bench.title}: global phase {self.done} of {len(self._boundaries)} after {self.count} documents: "
            f"{steps} steps"
        )

    def say_what_is_left(self, bench: Bench) -> None:
        """A sentence when there was no room for some phases: after the last batch nothing is left to predict."""
        if self.done < len(self._boundaries):
            bench.console.say(
                f"{bench.title}: only {self.done} of {len(self._boundaries)} global phases came before the last batch "
                "of documents; fewer documents a batch (ttt.rows) or a shorter prefix (ttt.prefix_docs) make room."
            )


def _log_probs(
    model: GPT, scorer: Scorer, windows: list[Window], going: int, bench: Bench, adapters: BatchedLora
) -> Tensor:
    """Log-probabilities [n, chunk, V] of `windows`, from one forward for the first `going`, which the gradient needs
    as well, and one without it for the others, whose documents end."""
    found = []
    if going:
        learning = adapters.rows(0, going)
        found.append(window_log_probs(model, scorer, windows[:going], bench.attention, learning, bench.forward))
    if going < len(windows):
        with torch.no_grad():
            rest = adapters.rows(going, len(windows))
            found.append(window_log_probs(model, scorer, windows[going:], bench.attention, rest, bench.forward))
    longest = max(part.shape[1] for part in found)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, longest - part.shape[1])) for part in found])


def _again(model: GPT, scorer: Scorer, windows: list[Window], bench: Bench, adapters: LoraRows) -> Tensor:
    """The cost [n, chunk] that `windows`, which were scored, have under the adapters as they are now."""
    found = window_log_probs(model, scorer, windows, bench.attention, adapters, bench.forward)
    return cost_of_scored(scorer, windows, found)

"""One pass of SGD over scored documents, on all weights of the model."""

import math
from typing import Literal

import torch
from torch import Tensor

from pgolf.data.validation import BOS_ID
from pgolf.distributed import Group
from pgolf.kernels.attend import Attention
from pgolf.kernels.packing import Packing, build_cu_seqlens
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench

Boundaries = Literal["both", "documents", "rows"]


class GlobalSGD:
    """SGD over the concatenated documents in chunks of `chunk_tokens`, one step per chunk, cosine learning rate.

    The last (partial) chunk is not trained on, as published (PR 1610). A chunk is cut into rows of `sequence_tokens`;
    what does not fill a row is not trained on either. rows_per_step: take a step every so many rows instead of one a
    chunk. boundaries: what the attention does not cross: `both` rows and documents, so that the answer does not
    depend on how many processes share the rows; `documents` only, and `sequence_tokens` after a document's start or
    the process's first row (as published from PR 1610 on); `rows` only, as before. The gradient is that of the mean
    over the tokens of a step, however the processes share its rows; clip_norm=None does not clip it. warmup_chunks:
    the rate first rises over so many chunks from warmup_start_lr to lr.

    Raises ValueError when a chunk does not hold a row.
    """

    def __init__(
        self,
        *,
        lr: float,
        momentum: float,
        chunk_tokens: int,
        sequence_tokens: int,
        epochs: int,
        clip_norm: float | None,
        boundaries: Boundaries = "both",
        rows_per_step: int | None = None,
        warmup_chunks: int = 0,
        warmup_start_lr: float = 0.0,
    ) -> None:
        if not 1 <= sequence_tokens <= chunk_tokens:
            raise ValueError(
                f"ttt.sgd.sequence_tokens={sequence_tokens} must lie between 1 and ttt.sgd.chunk_tokens={chunk_tokens}"
            )
        if epochs < 1 or warmup_chunks < 0:
            raise ValueError(
                f"ttt.sgd.epochs={epochs} must be at least 1, ttt.sgd.warmup_chunks={warmup_chunks} at least 0"
            )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"ttt.sgd.clip_norm={clip_norm} must be above 0, or null for no clipping")
        if rows_per_step is not None and rows_per_step < 1:
            raise ValueError(f"ttt.sgd.rows_per_step={rows_per_step} must be at least 1, or null for whole chunks")
        self.lr, self.momentum, self.epochs, self.clip_norm = lr, momentum, epochs, clip_norm
        self.chunk_tokens, self.sequence_tokens = chunk_tokens, sequence_tokens
        self.boundaries, self.rows_per_step = boundaries, rows_per_step
        self.warmup_chunks, self.warmup_start_lr = warmup_chunks, warmup_start_lr

    def run(self, model: GPT, scorer: Scorer, documents: list[int], bench: Bench) -> int:
        """Train `model` in place on `documents`, all of which must have been scored; every process must call this.

        Returns the number of steps; 0 when the text does not fill a chunk.
        """
        if not documents:
            return 0
        stream = torch.cat([scorer.revealed(document, *scorer.span(document)) for document in documents])
        chunks = math.ceil((len(stream) - 1) / self.chunk_tokens)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)
        steps = 0
        for chunk in range(chunks - 1):
            lr = self.rate(chunk, chunks)
            tokens = stream[chunk * self.chunk_tokens : (chunk + 1) * self.chunk_tokens + 1]
            steps += self.train(model, optimizer, lr, tokens, scorer.group, bench.attention)
        return steps

    def rate(self, chunk: int, chunks: int) -> float:
        """The learning rate of chunk `chunk` of `chunks`: after the warm-up a cosine from lr to 0, which the last chunk
        would have, were it trained on."""
        if chunk < self.warmup_chunks:
            share = chunk / max(1, self.warmup_chunks - 1)
            return self.warmup_start_lr + (self.lr - self.warmup_start_lr) * share
        progress = (chunk - self.warmup_chunks) / max(1, chunks - 1 - self.warmup_chunks)
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))

    def train(
        self,
        model: GPT,
        optimizer: torch.optim.Optimizer,
        lr: float,
        tokens: Tensor,
        group: Group,
        attention: Attention,
    ) -> int:
        """`epochs` passes over the rows of one chunk, tokens int64 [chunk + 1]; returns the number of steps. The
        model's parameters require gradients only in here."""
        rows = (len(tokens) - 1) // self.sequence_tokens
        per_step = self.rows_per_step or max(1, rows)
        for settings in optimizer.param_groups:
            settings["lr"] = lr
        model.requires_grad_(True)
        steps = 0
        for _ in range(self.epochs):
            for row in range(0, rows, per_step):
                first, last = row * self.sequence_tokens, min(row + per_step, rows) * self.sequence_tokens
                self._step(model, optimizer, tokens[first : last + 1], group, attention)
                steps += 1
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        return steps

    def _step(
        self, model: GPT, optimizer: torch.optim.Optimizer, tokens: Tensor, group: Group, attention: Attention
    ) -> None:
        rows = (len(tokens) - 1) // self.sequence_tokens
        first = rows * group.rank // group.world_size * self.sequence_tokens
        last = rows * (group.rank + 1) // group.world_size * self.sequence_tokens
        optimizer.zero_grad(set_to_none=False)
        if last > first:
            # A smear gate reads the token before a row, a table of pairs those before that: those before this process's
            # first row come along, as a piece of their own that no attention crosses, so that rows see the same
            # whoever has them.
            lead = min(first, max(1, model.reach))
            inputs, targets = tokens[first - lead : last], tokens[first + 1 : last + 1]
            context = Context(attention, self._packing(inputs, lead).to(group.device))
            with model.precision.autocast(group.device):
                logits = model.logits(model(inputs[None].to(group.device), context)[:, lead:], context)
            loss = torch.nn.functional.cross_entropy(logits[0], targets.to(group.device), reduction="sum")
            # mean_ divides by the number of processes, which this undoes: the gradient is that of the mean over the
            # whole step
            (loss * group.world_size / (len(tokens) - 1)).backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        group.mean_([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        optimizer.step()

    def _packing(self, inputs: Tensor, lead: int) -> Packing:
        """Boundaries of one flat row of whole rows, inputs int64 [lead + rows * sequence_tokens]."""
        starts = (torch.arange(len(inputs)) - lead) % self.sequence_tokens == 0
        if self.boundaries == "both":
            starts |= inputs == BOS_ID
        elif self.boundaries == "documents":
            starts = inputs == BOS_ID
        starts[0] = starts[lead] = True
        positions = starts.nonzero().squeeze(1).numpy()
        return Packing.from_cu_seqlens(build_cu_seqlens(positions, len(inputs), self.sequence_tokens, bucket=64))

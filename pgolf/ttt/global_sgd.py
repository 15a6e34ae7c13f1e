"""One pass of SGD over scored documents, on all weights of the model."""

import math

import torch

from pgolf.data.validation import BOS_ID
from pgolf.kernels.packing import Packing, build_cu_seqlens
from pgolf.model.context import Context
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench


class GlobalSGD:
    """SGD over the concatenated documents in chunks of `chunk_tokens`, one step per chunk, cosine learning rate.

    The last (partial) chunk is not trained on, as published (PR 1610). sequence_tokens: longest piece of a document.
    Raises ValueError when a chunk is not a multiple of a sequence.
    """

    def __init__(
        self, *, lr: float, momentum: float, chunk_tokens: int, sequence_tokens: int, epochs: int, clip_norm: float
    ) -> None:
        if chunk_tokens % sequence_tokens or sequence_tokens < 1:
            raise ValueError(
                f"ttt.sgd.chunk_tokens={chunk_tokens} is not a multiple of ttt.sgd.sequence_tokens={sequence_tokens}"
            )
        if epochs < 1:
            raise ValueError(f"ttt.sgd.epochs={epochs} must be at least 1")
        self.lr, self.momentum, self.epochs, self.clip_norm = lr, momentum, epochs, clip_norm
        self.chunk_tokens, self.sequence_tokens = chunk_tokens, sequence_tokens

    def run(self, model: GPT, scorer: Scorer, documents: list[int], bench: Bench) -> int:
        """Train `model` in place on `documents`, all of which must have been scored; every process must call this.

        Returns the number of steps; 0 when the text does not fill a chunk.
        """
        if not documents:
            return 0
        stream = torch.cat([scorer.revealed(document, *scorer.span(document)) for document in documents])
        chunks = math.ceil((len(stream) - 1) / self.chunk_tokens)
        model.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=self.momentum)
        for chunk in range(chunks - 1):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1.0 + math.cos(math.pi * chunk / (chunks - 1)))
            tokens = stream[chunk * self.chunk_tokens : (chunk + 1) * self.chunk_tokens + 1]
            for _ in range(self.epochs):
                self._step(model, optimizer, tokens, scorer, bench)
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
        return max(0, chunks - 1) * self.epochs

    def _step(
        self, model: GPT, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, scorer: Scorer, bench: Bench
    ) -> None:
        group = scorer.group
        rows = self.chunk_tokens // self.sequence_tokens
        first = rows * group.rank // group.world_size * self.sequence_tokens
        last = rows * (group.rank + 1) // group.world_size * self.sequence_tokens
        optimizer.zero_grad(set_to_none=False)
        if last > first:
            inputs, targets = tokens[first:last], tokens[first + 1 : last + 1]
            # rows do not see each other, so the answer does not depend on how many processes share them
            positions = torch.arange(len(inputs))
            starts = ((inputs == BOS_ID) | (positions % self.sequence_tokens == 0)).nonzero().squeeze(1).numpy()
            boundaries = build_cu_seqlens(starts, len(inputs), self.sequence_tokens, bucket=64)
            packing = Packing.from_cu_seqlens(boundaries).to(group.device)
            context = Context(bench.attention, packing)
            with model.precision.autocast(group.device):
                logits = model.logits(model(inputs[None].to(group.device), context), context)
            loss = torch.nn.functional.cross_entropy(logits[0], targets.to(group.device), reduction="sum")
            # mean_ divides by the number of processes, which this undoes: the gradient is that of the mean over the
            # whole chunk
            (loss * group.world_size / self.chunk_tokens).backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        group.mean_([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        optimizer.step()

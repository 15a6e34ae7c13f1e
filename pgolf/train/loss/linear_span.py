"""A JEPA-like auxiliary loss: the displacement over a span of the sequence points where that over the rest does."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pgolf.data.loaders import Batch
from pgolf.model.context import LAST
from pgolf.model.gpt import GPT
from pgolf.model.roles import Part
from pgolf.optim.schedule import Position, Turn
from pgolf.train.loss.forward import Forward
from pgolf.train.loss.objective import Draw, Facts

SHORTEST = 4  # tokens of a sequence that has a span


class LinearSpan:
    """coefficient * mean over sequences of 1 - cos(context, patch) of hidden states h_0 .. h_{T-1} and a span [a, b]:
    patch = h_b - h_{a-1}, context = (h_{a-1} - h_0) + (h_{T-1} - h_b), in fp32 (JEPA linear-span loss of the
    golden-sunflowers proposal).

    s is uniform in 1..max(1, floor(T * max_span_fraction)), then a in 1..T-s-1, and b = a + s. All rows of a
    micro-batch share a span, as published; where documents are packed each has its own, and none that is shorter than 4
    tokens (a span that a short document has no room for is at most T - 2). Spans are drawn outside the compiled graph.

    layer: the block whose output h is, after its last visit, of several lanes their mean; -1: the stream before the
    final norm. start: part of the budget before which the term is multiplied by 0 (published as a knob that nothing
    read). Raises ValueError for a coefficient that is not positive and a fraction out of range.
    """

    parts = 1

    def __init__(self, *, coefficient: float, max_span_fraction: float, layer: int, start: float) -> None:
        if not coefficient > 0.0:
            raise ValueError(f"linear span coefficient={coefficient} must be positive (without it, leave the term out)")
        if not 0.0 < max_span_fraction <= 1.0 or not 0.0 <= start < 1.0:
            raise ValueError(f"linear span max_span_fraction={max_span_fraction} and start={start}: parts of 1")
        if layer < LAST:
            raise ValueError(f"linear span layer={layer} must be a block, or -1 for the stream before the final norm")
        self.weight, self.max_span_fraction, self.layer, self.start = coefficient, max_span_fraction, layer, start
        self.wanted = frozenset({layer})

    @property
    def turns(self) -> Sequence[Turn]:
        """Its start, where it does not begin with training."""
        return [Turn("the term starts", "fraction", self.start)] if self.start else []

    def longest_span(self, length: int) -> int:
        """The longest s of a sequence of so many tokens."""
        return max(1, int(length * self.max_span_fraction))

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Sequences that have no room for the longest span."""
        for length in lengths:
            if length < SHORTEST or self.longest_span(length) > length - 2:
                yield (
                    f"a span of {self.longest_span(length)} has no room in sequences of {length} tokens, which must be "
                    f"{SHORTEST} or more: a span may have at most {length - 2}. Lower max_span_fraction="
                    f"{self.max_span_fraction}"
                )

    def heads(self, model: GPT) -> Part | None:
        """None. ValueError when the model never walks the block."""
        last = len(model.blocks) - 1
        if self.layer > last:
            raise ValueError(f"linear span layer={self.layer}: the blocks are 0..{last}; -1 is after the last of them")
        return None

    def coefficient(self, position: Position) -> float:
        """The coefficient; 0 before the start."""
        return self.weight if position.fraction >= self.start else 0.0

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Facts, Sequence[float]]:
        """Flat places int64 [4, n] of h_0, h_{a-1}, h_b and h_{T-1} of every sequence, and fp32 [n]: 1, or 0 for one
        without a span; how many have one."""
        generator = draw()
        rows, length = batch.inputs.shape
        if batch.cu_seqlens is None:
            before, end = self._span(length, generator)
            first = torch.arange(rows) * length
            places = torch.stack([first, first + before, first + end, first + length - 1])
            return (places, torch.ones(rows)), [float(rows)]
        starts, ends = batch.cu_seqlens[:-1].long(), batch.cu_seqlens[1:].long()
        drawn = [self._span(size, generator) if size >= SHORTEST else (0, 0) for size in (ends - starts).tolist()]
        spans = torch.tensor(drawn).view(-1, 2)
        with_span = spans[:, 1] > 0
        last = torch.where(with_span, ends - 1, 0)
        places = torch.stack([starts, starts + spans[:, 0], starts + spans[:, 1], last])
        places = torch.where(with_span, places, 0)
        return (places, with_span.float()), [float(with_span.sum())]

    def _span(self, length: int, generator: torch.Generator) -> tuple[int, int]:
        """a - 1 and b in a sequence of so many tokens."""
        longest = min(self.longest_span(length), length - 2)
        size = int(torch.randint(1, longest + 1, (), generator=generator))
        first = int(torch.randint(1, length - size, (), generator=generator))
        return first - 1, first + size

    def __call__(self, made: Forward, heads: Part | None, facts: Facts) -> Tensor:
        """fp32 [1]: the sum over sequences."""
        places, weights = facts
        begin, before, end, last = made.walk.kept["output", self.layer].flatten(0, 1)[places].float().unbind(0)
        cosine = nn.functional.cosine_similarity((before - begin) + (last - end), end - before, dim=-1)
        return ((1.0 - cosine) * weights).sum()[None]

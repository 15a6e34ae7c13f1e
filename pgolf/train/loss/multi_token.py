"""Multi-token prediction: heads that only training has guess the tokens after the next one."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pgolf.data.loaders import Batch
from pgolf.data.validation import BOS_ID
from pgolf.model.gpt import GPT
from pgolf.model.roles import Part, constant
from pgolf.optim.schedule import Position, Turn
from pgolf.train.loss.forward import Forward
from pgolf.train.loss.objective import Draw, Facts

IGNORED = -100


class AheadHeads(Part):
    """Matrices ahead_1, ahead_2, ... [vocab_size, dim], from zero: head k reads the normed hidden state and gives the
    logits of the token k places after the next."""

    def __init__(self, vocab_size: int, dim: int, count: int) -> None:
        super().__init__()
        self.names = [f"ahead_{number}" for number in range(1, count + 1)]
        for name in self.names:
            self.declare(name, (vocab_size, dim), "head", constant(0.0))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        """hidden [B, T, dim] -> the logits [B, T, vocab_size] of every head."""
        return [nn.functional.linear(hidden, self.get_parameter(name).to(hidden.dtype)) for name in self.names]


class MultiToken:
    """weight * the mean over k = 1..heads of the cross entropy of head k, which at t predicts token t + 1 + k (records
    of 2026-03-23: weight 0.2, heads from zero, dropped at export; there it was never on).

    Logits go through the model's cap. A document is not left: t counts for head k when the inputs t + 1 .. t + k are
    of the same row and begin no other document. The heads have the role `head` (its optimiser), and averages and
    checkpoints while training lasts; nothing of them is scored or stored. Raises ValueError for fewer than one head or
    a weight that is not positive.
    """

    wanted: frozenset[int] = frozenset()
    turns: Sequence[Turn] = ()

    def __init__(self, *, heads: int, weight: float) -> None:
        if heads < 1 or not weight > 0.0:
            raise ValueError(f"multi-token prediction: heads={heads} must be at least 1 and weight={weight} positive")
        self.parts, self.weight = heads, weight

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Sequences too short for the last head."""
        if min(lengths) <= self.parts:
            yield f"head {self.parts} has nothing to predict in sequences of {min(lengths)} tokens: use fewer heads"

    def heads(self, model: GPT) -> Part | None:
        """The heads."""
        return AheadHeads(model.vocab_size, model.dim, self.parts)

    def coefficient(self, position: Position) -> float:
        """The weight."""
        return self.weight

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Facts, Sequence[float]]:
        """Targets int64 [heads, B, T], IGNORED where there is none, and how many each head has."""
        document = (batch.inputs == BOS_ID).cumsum(-1)
        ahead = torch.full((self.parts, *batch.targets.shape), IGNORED)
        for k in range(1, self.parts + 1):
            same = document[:, k:] == document[:, :-k]
            ahead[k - 1, :, :-k] = torch.where(same, batch.targets[:, k:], IGNORED)
        return (ahead,), (ahead != IGNORED).sum((1, 2)).tolist()

    def __call__(self, made: Forward, heads: Part | None, facts: Facts) -> Tensor:
        """fp32 [heads]: sums of cross entropies."""
        assert isinstance(heads, AheadHeads)
        sums = []
        for scores, ahead in zip(heads(made.hidden), facts[0].unbind(0), strict=True):
            logits = made.model.softcap(scores) if made.model.softcap is not None else scores.float()
            nats = nn.functional.cross_entropy(
                logits.flatten(0, 1), ahead.flatten(), reduction="sum", ignore_index=IGNORED
            )
            sums.append(nats)
        return torch.stack(sums)

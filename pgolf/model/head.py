"""From hidden states to capped logits: the output matrix, tied or not, and the softcap."""

import torch
from torch import Tensor, nn

from pgolf.model.context import HEAD_SLOT, Context
from pgolf.model.roles import Linear, Part, constant, normal


def _scores(hidden: Tensor, weight: Tensor, context: Context) -> Tensor:
    return context.adapt(HEAD_SLOT, "head", hidden, nn.functional.linear(hidden, weight.to(hidden.dtype)))


class TiedHead(nn.Module):
    """The token embedding is the output matrix."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()

    def forward(self, hidden: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """hidden [B, T, dim], embedding [vocab_size, dim] -> [B, T, vocab_size]."""
        return _scores(hidden, embedding, context)


class UntiedHead(Part):
    """An output matrix of its own, weight [vocab_size, dim], from zero (2026-03-17)."""

    weight: nn.Parameter

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.declare("weight", (vocab_size, dim), "head", constant(0.0))

    def forward(self, hidden: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """hidden [B, T, dim] -> [B, T, vocab_size]; the embedding is not read."""
        return _scores(hidden, self.weight, context)


class Lookup(nn.Module):
    """Products with a table, as a module, so that its input can be observed."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x [B, T, n], table [vocab_size, n] -> [B, T, vocab_size]."""
        return nn.functional.linear(x, table.to(x.dtype))


class FactoredHead(Part):
    """E (R h) + b with the narrow table E of the embedding: reverse R [rank, dim], bias [vocab_size] (2026-03-24)."""

    bias: nn.Parameter

    def __init__(self, vocab_size: int, dim: int, rank: int, init_std: float, bias: bool) -> None:
        super().__init__()
        self.reverse = Linear(dim, rank, "matrix", normal(init_std))
        self.table = Lookup()
        self.biased = bias
        if bias:
            self.declare("bias", (vocab_size,), "scalar", constant(0.0))

    def forward(self, hidden: Tensor, embedding: Tensor, context: Context) -> Tensor:
        """hidden [B, T, dim], embedding [vocab_size, rank] -> [B, T, vocab_size]; adapters read the hidden states."""
        scores = self.table(self.reverse(hidden), embedding)
        scores = scores + self.bias.to(scores.dtype) if self.biased else scores
        return context.adapt(HEAD_SLOT, "head", hidden, scores)


def _check_cap(cap: float) -> None:
    if cap <= 0:
        raise ValueError(f"softcap cap={cap} must be positive")


class SoftCap(nn.Module):
    """cap * tanh(z / cap) in fp32, so that scores and gradients do not depend on how a lower precision rounds tanh.

    Raises ValueError when cap is not positive.
    """

    def __init__(self, vocab_size: int, *, cap: float) -> None:
        super().__init__()
        _check_cap(cap)
        self.cap = cap

    def forward(self, z: Tensor) -> Tensor:
        """z [..., vocab_size] -> fp32 [..., vocab_size]."""
        return self.cap * torch.tanh(z.float() / self.cap)


class AsymmetricSoftCap(Part):
    """Learned caps, one for positive and one for negative logits, both from `cap` (PR 1923; published scripts never
    trained them, here they are part of every loss and score)."""

    softcap_pos: nn.Parameter
    softcap_neg: nn.Parameter

    def __init__(self, vocab_size: int, *, cap: float) -> None:
        super().__init__()
        _check_cap(cap)
        self.declare("softcap_pos", (1,), "scalar", constant(cap))
        self.declare("softcap_neg", (1,), "scalar", constant(cap))

    def forward(self, z: Tensor) -> Tensor:
        """z [..., vocab_size] -> fp32 [..., vocab_size]."""
        z = z.float()
        cap = torch.where(z >= 0, self.softcap_pos.float(), self.softcap_neg.float())
        return cap * torch.tanh(z / cap)


class PolynomialSoftCap(nn.Module):
    """cap * clamp(u (1 - u^2/3 + u^4/15), -1, 1) with u = clamp(z / cap, -2, 2), in fp32 (2026-03-24; the series of
    tanh has 2/15 there, the record has 1/15). Raises ValueError when cap is not positive."""

    def __init__(self, vocab_size: int, *, cap: float) -> None:
        super().__init__()
        _check_cap(cap)
        self.cap = cap

    def forward(self, z: Tensor) -> Tensor:
        """z [..., vocab_size] -> fp32 [..., vocab_size]."""
        u = (z.float() / self.cap).clamp(-2.0, 2.0)
        square = u.square()
        return self.cap * (u * (1.0 - square / 3.0 + square.square() / 15.0)).clamp(-1.0, 1.0)

"""From hidden states to capped logits: the output matrix, tied or not, and the softcap."""

import torch
from torch import Tensor, nn

from pgolf.model.context import HEAD_SLOT, Context
from pgolf.model.roles import Part, constant


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

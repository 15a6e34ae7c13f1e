"""Attention by alpha-entmax: each query's probabilities have zeros (pgolf.kernels.entmax says what they are).

What it costs in place of a softmax stands in pgolf.kernels.entmax_attention: no back end of `kernels=` computes it.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.distributed import Group
from pgolf.kernels.entmax import check_alpha
from pgolf.kernels.entmax_attention import entmax_attention
from pgolf.kernels.packing import Packing
from pgolf.model.context import Walk
from pgolf.model.control import Controlled
from pgolf.model.roles import Part, constant

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

DIGITS = 1e4  # what averaging and storing leave of alpha: 1.5 comes back as 1.5, for which sorting is exact


class FixedAlpha(nn.Module):
    """Attention with one alpha, of no state dict. In main memory wherever the model is."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = torch.tensor(alpha, dtype=torch.float64, device="cpu")

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        """q [B, T, H, d], k and v [B, T, G, d] -> [B, T, H, d]."""
        return entmax_attention(q, k, v, packing, self.alpha)


class MovingAlpha(Part, Controlled):
    """Attention whose alpha, fp32 [1], moves with the number of the step from 1 to `target`, over `steps`. It is kept
    with the weights: scored is with the alpha at which training ended, or with the mean of those that were averaged.
    Every call reads it back, which waits for an accelerator."""

    alpha: nn.Parameter

    def __init__(self, target: float, steps: int) -> None:
        super().__init__()
        self.target, self.over = target, steps
        self.declare("alpha", (1,), "scalar", constant(1.0))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        """q [B, T, H, d], k and v [B, T, G, d] -> [B, T, H, d]."""
        alpha = (self.alpha.detach().float().clamp(1.0, 2.0) * DIGITS).round() / DIGITS
        return entmax_attention(q, k, v, packing, alpha)

    def steered(self) -> list[nn.Parameter]:
        """Alpha."""
        return [self.alpha]

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        """Where alpha is in this step."""
        self.alpha.fill_(1.0 + (self.target - 1.0) * min(1.0, step / self.over))

    def observe(self, walk: Walk) -> None:
        """Nothing of a forward decides."""

    def end_step(self, group: Group) -> None:
        """It has moved."""


class _Mapping(ABC):
    """Gives every attention probabilities by entmax. Raises ValueError for alpha outside (1, 2]."""

    def __init__(self, *, alpha: float) -> None:
        check_alpha(alpha)
        if alpha == 1.0:
            raise ValueError("entmax alpha=1 is the softmax: set model/entmax=none, which computes it faster")
        self.alpha = alpha

    def fit(self, model: "GPT") -> None:
        """ValueError where no block has attention."""
        if not model.attentions:
            raise ValueError("entmax: no block has attention (model/state_space); set model/entmax=none")
        for attention in model.attentions:
            attention.entmax = self.made()

    @abstractmethod
    def made(self) -> FixedAlpha | MovingAlpha:
        """What one attention calls in the place of a back end."""


class Entmax(_Mapping):
    """alpha from the first step on."""

    def made(self) -> FixedAlpha:
        """With this alpha."""
        return FixedAlpha(self.alpha)


class EntmaxFromSoftmax(_Mapping):
    """alpha moves evenly from 1, the softmax, to `alpha` over the first `steps` steps and stays there (the published
    name of the end is attn_alpha_target). Raises ValueError for fewer than one step."""

    def __init__(self, *, alpha: float, steps: int) -> None:
        super().__init__(alpha=alpha)
        if steps < 1:
            raise ValueError(f"entmax.steps={steps} must be at least 1: over so many steps alpha moves from 1")
        self.steps = steps

    def made(self) -> MovingAlpha:
        """One alpha for each attention."""
        return MovingAlpha(self.alpha, self.steps)

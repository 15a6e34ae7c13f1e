"""What is left out of hidden layers in training."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pgolf.model.mlp import Mlp

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


class NormPercentile:
    """Tokens whose hidden vector is among the longest become zero: those of norm >= the `quantile` of the norms of all
    tokens of the micro-batch; the others are not rescaled (patch 27 of the taka fork, which writes 0.99).

    In training alone. Scoring, and training of adapters or weights while scoring, leave it out, because a model that is
    scored is in evaluation mode. In training it does let a token's fate depend on other tokens.

    Raises ValueError for a quantile that is not in (0, 1).
    """

    def __init__(self, *, quantile: float) -> None:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"mlp_dropout.quantile={quantile} must lie between 0 and 1")
        self.quantile = quantile

    def fit(self, model: "GPT") -> None:
        """Every MLP of the model drops by this rule, those of repeated visits too."""
        for module in model.modules():
            if isinstance(module, Mlp):
                module.dropout = self

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden [B, T, width] -> the same with some tokens zero."""
        norms = hidden.detach().float().norm(dim=-1)
        limit = torch.quantile(norms.flatten(), self.quantile)
        return hidden * (norms < limit)[..., None].to(hidden.dtype)

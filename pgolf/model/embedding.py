"""The token embedding and how it begins."""

from typing import Literal

import torch
from torch import Tensor, nn

from pgolf.model.roles import Init, Part, normal

EmbeddingInit = Literal["normal", "overtone"]


class Embedding(Part):
    """Token embedding table, weight [vocab_size, dim].

    init: "normal": N(0, std^2). "overtone": such a table with its k-th singular value (k = 1, 2, ...) replaced by the
    first over sqrt(k) (2026-03-19).
    """

    weight: nn.Parameter

    def __init__(self, vocab_size: int, dim: int, std: float, init: EmbeddingInit) -> None:
        super().__init__()
        self.declare("weight", (vocab_size, dim), "embedding", normal(std) if init == "normal" else _overtone(std))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> [B, T, dim]."""
        return nn.functional.embedding(tokens, self.weight)


def _overtone(std: float) -> Init:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        normal(std)(tensor, generator)
        left, values, right = torch.linalg.svd(tensor, full_matrices=False)
        values = values[0] / torch.arange(1, len(values) + 1).sqrt()
        tensor.copy_(left * values @ right)

    return fill

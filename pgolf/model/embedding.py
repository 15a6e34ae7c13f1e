"""The token embedding, whole or in two thin factors, and how it begins."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pgolf.model.head import FactoredHead, TiedHead
from pgolf.model.roles import Init, Linear, Part, normal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

EmbeddingInit = Literal["normal", "overtone", "smeared"]
NEIGHBOURS = 0.15  # share of the neighbours' mean in a smeared table


class Embedding(Part):
    """Token embedding table, weight [vocab_size, dim].

    init: "normal": N(0, std^2). "overtone": such a table with its k-th singular value (k = 1, 2, ...) replaced by the
    first over sqrt(k) (2026-03-19). "smeared": e_i = 0.85 e_i + 0.15 (e_{i-1} + e_{i+1}) / 2 over the ids of such a
    table (a fork of PR 4 by johnlennyt5, known from its description); the first and the last id are their own missing
    neighbours.
    """

    weight: nn.Parameter

    def __init__(self, vocab_size: int, dim: int, std: float, init: EmbeddingInit) -> None:
        super().__init__()
        inits = {"normal": normal, "overtone": _overtone, "smeared": _smeared}
        self.declare("weight", (vocab_size, dim), "embedding", inits[init](std))

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


def _smeared(std: float) -> Init:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        normal(std)(tensor, generator)
        around = torch.cat((tensor[:1], tensor[:-1])) + torch.cat((tensor[1:], tensor[-1:]))
        tensor.mul_(1.0 - NEIGHBOURS).add_(around, alpha=NEIGHBOURS / 2)

    return fill


class FactoredEmbedding(Part):
    """e = P E[x]: table weight [vocab_size, rank] and a map proj [dim, rank]."""

    weight: nn.Parameter

    def __init__(self, vocab_size: int, dim: int, rank: int, table: Init, init_std: float) -> None:
        super().__init__()
        self.declare("weight", (vocab_size, rank), "embedding", table)
        self.proj = Linear(rank, dim, "matrix", normal(init_std))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> [B, T, dim], in fp32 where no autocast says otherwise."""
        return self.proj(nn.functional.embedding(tokens, self.weight).float())


class Factored:
    """Embedding and tied head through a narrow table (2026-03-24): e = P E[x] going in, E R h + b going out.

    rank: columns of E, which begins as `embedding_init` and `embedding_std` say. init_std: initial standard deviation
    of P [dim, rank] and R [rank, dim]. bias: whether there is a b [vocab_size], from zero. With an untied head there is
    no R and no b. ValueError when the table is not narrower than the model, or init_std not positive.
    """

    def __init__(self, *, rank: int, init_std: float, bias: bool) -> None:
        if not init_std > 0:
            raise ValueError(f"embedding.init_std={init_std} must be positive: maps of zero would never leave it")
        self.rank, self.init_std, self.bias = rank, init_std, bias

    def fit(self, model: "GPT") -> None:
        """Put the factored embedding, and the head to it, in the place of the others."""
        if not 1 <= self.rank < model.dim:
            raise ValueError(f"embedding.rank={self.rank} must lie between 1 and model.dim={model.dim} - 1")
        size, table = model.vocab_size, model.tok_emb.inits["weight"]
        model.tok_emb = FactoredEmbedding(size, model.dim, self.rank, table, self.init_std)
        if isinstance(model.head, TiedHead):
            model.head = FactoredHead(size, model.dim, self.rank, self.init_std, self.bias)

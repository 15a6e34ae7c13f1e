"""Embeddings of pairs and triples of tokens, looked up in a table by a hash."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pgolf.kernels.packing import Packing
from pgolf.model.embedding import Embedding
from pgolf.model.roles import Linear, Part, constant, orthogonal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

First = Literal["itself", "zero", "reserved"]


class Bigram:
    """What `BigramHash` adds to the embedding, before the norm and before any smear.

    hash: "xor": (p0 x_t) xor (p1 x_{t-1}) xor ...; "sum": p0 x_t + p1 x_{t-1} + ...; the row of the table is its
    remainder. primes: p0, p1, ..., two for pairs, three for triples of tokens. first: what stands before the first
    token: the token itself, token 0, or nothing: such a token takes the last row, which no hash gives. bos_id: the
    token that begins a document and counts as first, as does the first of each piece of a packed row, so that no
    document reads its neighbour; None: only the first of a row does, as all records have it.
    buckets, dim: rows and columns of the table, which starts at N(0, table_std^2). projection_gain: the map from dim to
    the model starts at an orthogonal matrix times that; 0: at zero. scale: initial value of a learned factor of the
    sum, or None.

    Raises ValueError for other numbers of primes, sizes below 1, a negative deviation, and where two of table,
    projection and factor start at zero and would never leave it.
    """

    def __init__(
        self,
        *,
        hash: Literal["xor", "sum"],
        primes: list[int],
        buckets: int,
        dim: int,
        first: First,
        bos_id: int | None,
        table_std: float,
        projection_gain: float,
        scale: float | None,
    ) -> None:
        if len(primes) not in (2, 3):
            raise ValueError(f"bigram.primes={primes}: two make pairs of tokens, three make triples")
        if dim < 1 or buckets < (2 if first == "reserved" else 1):
            raise ValueError(f"bigram.buckets={buckets} and dim={dim} leave no row for a pair of tokens")
        if table_std < 0:
            raise ValueError(f"bigram.table_std={table_std} must not be negative")
        if (table_std, projection_gain, scale).count(0) > 1:
            raise ValueError(
                f"bigram: table_std={table_std}, projection_gain={projection_gain}, scale={scale}: only one may be 0, "
                "for two give none of them a gradient, ever"
            )
        self.hash, self.primes, self.buckets, self.dim = hash, primes, buckets, dim
        self.first, self.bos_id, self.table_std = first, bos_id, table_std
        self.projection_gain, self.scale = projection_gain, scale

    def fit(self, model: "GPT") -> None:
        """Give the model its table."""
        model.bigram = BigramHash(model.dim, self)


class BigramHash(Part):
    """e_t + scale * W table[hash(x_t, x_{t-1}, ...)]. The table has the role of an embedding, W [dim, settings.dim]
    that of a matrix (2026-03-19 and after; PR 1716 had the table in no optimiser, so that it stayed at zero)."""

    scale: nn.Parameter

    def __init__(self, dim: int, settings: Bigram) -> None:
        super().__init__()
        self.settings = settings
        gain = settings.projection_gain
        self.embed = Embedding(settings.buckets, settings.dim, settings.table_std, "normal")
        self.proj = Linear(settings.dim, dim, "matrix", orthogonal(gain) if gain else constant(0.0))
        if settings.scale is not None:
            self.declare("scale", (1,), "scalar", constant(settings.scale))

    def rows(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """tokens int64 [B, T] -> rows of the table, int64 [B, T]."""
        begins = self._begins(tokens, packing)
        settings = self.settings
        reserved = settings.first == "reserved"
        terms = [prime * before for prime, before in zip(settings.primes, self._history(tokens, begins), strict=False)]
        mixed = terms[0]
        for term in terms[1:]:
            mixed = mixed ^ term if settings.hash == "xor" else mixed + term
        found = mixed % (settings.buckets - 1 if reserved else settings.buckets)
        if not reserved:
            return found
        missing = begins
        for _ in settings.primes[2:]:
            missing = begins | _shifted(missing)
        return torch.where(missing, settings.buckets - 1, found)

    def _history(self, tokens: Tensor, begins: Tensor) -> Iterator[Tensor]:
        """The tokens, those one place before them, those two places before, ..."""
        while True:
            yield tokens
            stand_in = tokens if self.settings.first == "itself" else torch.zeros_like(tokens)
            tokens = torch.where(begins, stand_in, _shifted(tokens))

    def _begins(self, tokens: Tensor, packing: Packing | None) -> Tensor:
        bos_id = self.settings.bos_id
        if bos_id is None:
            return (torch.arange(tokens.shape[1], device=tokens.device) == 0).expand_as(tokens)
        return piece_starts(tokens.shape[1], packing, tokens.device) | (tokens == bos_id)

    def forward(self, embedded: Tensor, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """embedded [B, T, dim], tokens int64 [B, T] -> [B, T, dim]."""
        added = self.proj(self.embed(self.rows(tokens, packing)).to(embedded.dtype))
        return embedded + (added if self.settings.scale is None else self.scale.to(added.dtype) * added)


def piece_starts(length: int, packing: Packing | None, device: torch.device) -> Tensor:
    """bool [length]: the first place of a row, and of each piece of a packed one."""
    if packing is None:
        return torch.arange(length, device=device) == 0
    ids = packing.document_ids(length)
    return torch.cat((ids.new_ones(1, dtype=torch.bool), ids[1:] != ids[:-1]))


def _shifted(x: Tensor) -> Tensor:
    """Each place gets what stood one place before, the first one its own."""
    return torch.cat((x[:, :1], x[:, :-1]), dim=1)

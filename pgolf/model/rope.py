"""Rotary position embedding on the first dimensions of each head (partial RoPE)."""

import torch
from torch import Tensor

Tables = tuple[Tensor, Tensor]


class Rotary:
    """Rotates dimension pairs (j, j + dims/2), j < dims/2, by position * base^(-2j/dims); the other dimensions are
    left alone.

    Source: RoFormer; partial form as in the published records (16 of 64 dimensions). train_tokens: rows longer than
    that many tokens T0 use the base base * (T / T0)^(dims / (dims - 2)), T the row's length, of a packed row that of
    all its documents (NTK-aware scaling, called YaRN in the records); None: never. Raises ValueError when dims is not
    a positive even number, base is not positive, or when there is nothing to scale (dims=2).
    """

    def __init__(self, *, dims: int, base: float, train_tokens: int | None = None) -> None:
        if dims <= 0 or dims % 2:
            raise ValueError(f"rope dims={dims} must be a positive even number")
        if base <= 0:
            raise ValueError(f"rope base={base} must be positive")
        if train_tokens is not None and (train_tokens < 1 or dims == 2):
            raise ValueError(f"rope train_tokens={train_tokens} must be positive, with dims={dims} above 2")
        self.dims, self.base, self.train_tokens = dims, base, train_tokens
        self._kept: dict[float, Tables] = {}

    def base_for(self, length: int) -> float:
        """The base for rows of `length` tokens."""
        if self.train_tokens is None or length <= self.train_tokens:
            return self.base
        return float(self.base * (length / self.train_tokens) ** (self.dims / (self.dims - 2)))

    def tables(self, length: int, device: torch.device) -> Tables:
        """cos and sin, fp32 [length, dims/2].

        They are kept and grown as needed, except inside a compiled graph: that computes its own, because a graph that
        writes what it reads is compiled again.
        """
        base = self.base_for(length)
        if torch.compiler.is_compiling():
            return self._make(base, length, device)
        if base not in self._kept or len(self._kept[base][0]) < length or self._kept[base][0].device != device:
            self._kept[base] = self._make(base, length, device)
        cos, sin = self._kept[base]
        return cos[:length], sin[:length]

    def _make(self, base: float, length: int, device: torch.device) -> Tables:
        exponents = torch.arange(0, self.dims, 2, dtype=torch.float32, device=device) / self.dims
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), base**-exponents)
        return angles.cos(), angles.sin()

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, heads, head_dim], rotated by the position t = 0..T-1."""
        half = self.dims // 2
        cos, sin = (table[:, None, :].to(x.dtype) for table in self.tables(x.shape[1], x.device))
        first, second, rest = x[..., :half], x[..., half : self.dims], x[..., self.dims :]
        return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)

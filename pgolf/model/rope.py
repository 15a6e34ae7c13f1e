"""Rotary position embedding on the first dimensions of each head (partial RoPE)."""

import torch
from torch import Tensor


class Rotary:
    """Rotates dimension pairs (j, j + dims/2), j < dims/2, by position * base^(-2j/dims); the other dimensions are
    left alone.

    Source: RoFormer; partial form as in the published records (16 of 64 dimensions).
    Raises ValueError when dims is not a positive even number.
    """

    def __init__(self, *, dims: int, base: float) -> None:
        if dims <= 0 or dims % 2:
            raise ValueError(f"rope dims={dims} must be a positive even number")
        self.dims = dims
        self.base = base
        self._tables: tuple[Tensor, Tensor] | None = None

    def tables(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [length, dims/2]; kept and grown as needed."""
        if self._tables is None or len(self._tables[0]) < length or self._tables[0].device != device:
            exponents = torch.arange(0, self.dims, 2, dtype=torch.float32, device=device) / self.dims
            angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), self.base**-exponents)
            self._tables = (angles.cos(), angles.sin())
        cos, sin = self._tables
        return cos[:length], sin[:length]

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, heads, head_dim], rotated by the position t = 0..T-1."""
        half = self.dims // 2
        cos, sin = (table[:, None, :].to(x.dtype) for table in self.tables(x.shape[1], x.device))
        first, second, rest = x[..., :half], x[..., half : self.dims], x[..., self.dims :]
        return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)

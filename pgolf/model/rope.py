"""Rotary position embedding on the first dimensions of each head (partial RoPE)."""

from typing import Protocol

import torch
from torch import Tensor

Tables = tuple[Tensor, Tensor]


class Frequencies(Protocol):
    """How fast the pairs of dimensions turn, other than by base^(-2j/dims)."""

    def __call__(self, base: float, dims: int, device: torch.device) -> Tensor:
        """Angle of one position for each pair j, fp32 [dims/2]."""
        ...

    def refuse(self, dims: int) -> None:
        """Raise ValueError when they do not go with so many rotated dimensions."""
        ...


class SlicedFrequencies:
    """base^(-2j/table_dims), j < dims/2: the first of a table for more dimensions than are rotated, hence the fast
    ones (a fork of PR 4 by taka6745, which sliced the table of the whole head)."""

    def __init__(self, *, table_dims: int) -> None:
        self.table_dims = table_dims

    def __call__(self, base: float, dims: int, device: torch.device) -> Tensor:
        """Angle of one position for each pair j, fp32 [dims/2]."""
        return powers(base, self.table_dims, device)[: dims // 2]

    def refuse(self, dims: int) -> None:
        """Raise ValueError when the table has fewer dimensions."""
        if self.table_dims < dims or self.table_dims % 2:
            raise ValueError(f"rope.frequencies.table_dims={self.table_dims} must be even and at least dims={dims}")


class YarnFrequencies:
    """base^(-2j/dims) / (1 + r_j (max_tokens / train_tokens - 1)), r_j = clamp((2j/dims - low) / (1 - low), 0, 1): the
    slow pairs turn slower, in training too, without YaRN's temperature (2026-03-24).

    Raises ValueError for a range that does not grow, or a low outside [0, 1).
    """

    def __init__(self, *, train_tokens: int, max_tokens: int, low: float) -> None:
        if not 0 < train_tokens <= max_tokens:
            raise ValueError(f"rope.frequencies: max_tokens={max_tokens} must be at least train_tokens={train_tokens}")
        if not 0.0 <= low < 1.0:
            raise ValueError(f"rope.frequencies.low={low} must lie in [0, 1)")
        self.stretch, self.low = max_tokens / train_tokens, low

    def __call__(self, base: float, dims: int, device: torch.device) -> Tensor:
        """Angle of one position for each pair j, fp32 [dims/2]."""
        place = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
        ramp = ((place - self.low) / (1.0 - self.low)).clamp(0.0, 1.0)
        return powers(base, dims, device) / (1.0 + ramp * (self.stretch - 1.0))

    def refuse(self, dims: int) -> None:
        """They go with any number."""


def powers(base: float, dims: int, device: torch.device) -> Tensor:
    """base^(-2j/dims), j < dims/2, fp32 [dims/2]."""
    exponents = torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims
    return torch.as_tensor(base**-exponents)


class Rotary:
    """Rotates dimension pairs (j, j + dims/2), j < dims/2, by position * base^(-2j/dims); the other dimensions are
    left alone.

    Source: RoFormer; partial form as in the published records (16 of 64 dimensions). train_tokens: rows longer than
    that many tokens T0 use the base base * (T / T0)^(dims / (dims - 2)), T the row's length, of a packed row that of
    all its documents (NTK-aware scaling, called YaRN in the records); None: never. frequencies: others than
    base^(-2j/dims). Raises ValueError when dims is not a positive even number, base is not positive, when there is
    nothing to scale (dims=2), and for other frequencies together with train_tokens, which is about the usual ones.
    """

    def __init__(
        self, *, dims: int, base: float, train_tokens: int | None = None, frequencies: Frequencies | None = None
    ) -> None:
        if dims <= 0 or dims % 2:
            raise ValueError(f"rope dims={dims} must be a positive even number")
        if base <= 0:
            raise ValueError(f"rope base={base} must be positive")
        if train_tokens is not None and (train_tokens < 1 or dims == 2):
            raise ValueError(f"rope train_tokens={train_tokens} must be positive, with dims={dims} above 2")
        if frequencies is not None:
            frequencies.refuse(dims)
            if train_tokens is not None:
                raise ValueError(
                    f"rope train_tokens={train_tokens} stretches the usual frequencies: choose one of the two"
                )
        self.dims, self.base, self.train_tokens, self.frequencies = dims, base, train_tokens, frequencies
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
        frequencies = (powers if self.frequencies is None else self.frequencies)(base, self.dims, device)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
        return angles.cos(), angles.sin()

    def __call__(self, x: Tensor) -> Tensor:
        """x [B, T, heads, head_dim], rotated by the position t = 0..T-1."""
        half = self.dims // 2
        cos, sin = (table[:, None, :].to(x.dtype) for table in self.tables(x.shape[1], x.device))
        first, second, rest = x[..., :half], x[..., half : self.dims], x[..., self.dims :]
        return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)

"""The fused kernels that a training step is handed; where there is none, a part takes its own plain code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Mlp(Protocol):
    """leaky_relu(x up^T, slope)^2 down^T."""

    def __call__(self, x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
        """x [..., dim], up [hidden, dim], down [dim, hidden] -> [..., dim]."""


class CrossEntropy(Protocol):
    """Cross entropy of capped scores, row by row."""

    def __call__(self, scores: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
        """scores [N, V], targets int64 [N] -> losses and log of the softmax's denominator, both [N]."""


class NormRotary(Protocol):
    """RMSNorm of each head, rotary embedding, gain."""

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
        """x [B, T, heads, d], cos and sin [T, dims / 2], gain [heads] -> [B, T, heads, d]."""


class Symmetric(Protocol):
    """scale x x^T + beta base."""

    def __call__(self, x: Tensor, base: Tensor | None = None, beta: float = 0.0, scale: float = 1.0) -> Tensor:
        """x [n, rows, cols], base [n, rows, rows] symmetric -> [n, rows, rows]."""


@dataclass(frozen=True)
class Fused:
    """Kernels by what they fuse. None: the parts compute it as they are written.

    mlp: up-projection, LeakyReLU^2 and down-projection. cross_entropy: softcap and cross entropy. norm_rotary: RMSNorm,
    rotary embedding and gain of queries or keys. smear_norm: smear gate and the first RMSNorm, called with
    embeddings [B, T, dim] and gates [B, T]. symmetric: the products of Newton-Schulz iterations.
    """

    mlp: Mlp | None = None
    cross_entropy: CrossEntropy | None = None
    norm_rotary: NormRotary | None = None
    smear_norm: Callable[[Tensor, Tensor], Tensor] | None = None
    symmetric: Symmetric | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that are there."""
        return tuple(name for name, kernel in vars(self).items() if kernel is not None)


UNFUSED = Fused()

"""What Muon can do to a gradient or an update besides orthogonalising it. Each is absent unless a configuration
names it.

All work on a batch of same-shaped matrices [n, rows, cols] in any floating dtype, matrix by matrix.
"""

from typing import Protocol

import torch
from torch import Tensor

State = dict[str, Tensor]


class Transform(Protocol):
    """A pure function of a batch."""

    def __call__(self, batch: Tensor) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype."""
        ...


class Rescaling(Protocol):
    """A rescaling of orthogonalised updates that may remember tensors with one entry a matrix."""

    def initial_state(self, n: int, rows: int, cols: int, device: torch.device) -> State:
        """Tensors [n, ...] by name, before the first step."""
        ...

    def __call__(self, updates: Tensor, state: State) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype; changes `state` in place."""
        ...


def unit_rows(batch: Tensor, floor: float = 1e-7) -> Tensor:
    """Every row divided by its L2 norm, which is taken in fp32 or wider and not below `floor`."""
    return batch / _norm(batch, -1).clamp_min(floor).to(batch.dtype)


class SignedPower:
    """GradPower: g <- sign(g) |g|^exponent on the raw gradient, before momentum (PR 1682; 0.9 there).

    Raises ValueError when the exponent is not positive.
    """

    def __init__(self, *, exponent: float) -> None:
        if exponent <= 0.0:
            raise ValueError(f"gradient power exponent={exponent} must be positive (1 changes nothing)")
        self.exponent = exponent

    def __call__(self, batch: Tensor) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype."""
        return batch if self.exponent == 1.0 else batch.sign() * batch.abs() ** self.exponent


class DiagonalMousse:
    """Mousse in its diagonal form: u_ij <- u_ij / (|row i| |column j|), norms not below `floor`, before row
    normalisation and orthogonalisation (public search log of the contest: no average over steps, no matrix root).
    """

    def __init__(self, *, floor: float = 1e-8) -> None:
        if floor <= 0.0:
            raise ValueError(f"Mousse floor={floor} must be positive")
        self.floor = floor

    def __call__(self, batch: Tensor) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype."""
        rows, columns = _norm(batch, -1).clamp_min(self.floor), _norm(batch, -2).clamp_min(self.floor)
        return (batch / rows / columns).to(batch.dtype)


class UnitRows:
    """Every row of the orthogonalised update divided by its norm: NorMuon without its memory (public search log)."""

    def initial_state(self, n: int, rows: int, cols: int, device: torch.device) -> State:
        """Nothing to remember."""
        return {}

    def __call__(self, updates: Tensor, state: State) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype."""
        return unit_rows(updates)


class NorMuon:
    """NorMuon (Li et al., 2025): rows of the orthogonalised update O divided by the root of their running mean square.

    v <- beta v + (1 - beta) mean over columns of O^2; O <- O / (sqrt(v) + eps), then scaled back to the Frobenius norm
    that O had. Correcting the bias of v would multiply all rows alike, which the scaling undoes. v [n, rows, 1], fp32.
    Raises ValueError when beta is not in [0, 1).
    """

    def __init__(self, *, beta: float = 0.95, eps: float = 1e-10) -> None:
        if not 0.0 <= beta < 1.0 or eps <= 0.0:
            raise ValueError(f"NorMuon beta={beta} must lie in [0, 1) and eps={eps} be positive")
        self.beta, self.eps = beta, eps

    def initial_state(self, n: int, rows: int, cols: int, device: torch.device) -> State:
        """The running mean squares, zero."""
        return {"second_moment": torch.zeros(n, rows, 1, device=device)}

    def __call__(self, updates: Tensor, state: State) -> Tensor:
        """[n, rows, cols] -> the same shape and dtype."""
        wide = updates if updates.dtype == torch.float64 else updates.float()
        squares = state["second_moment"]
        squares.lerp_(wide.square().mean(dim=-1, keepdim=True).to(squares.dtype), 1.0 - self.beta)
        scaled = wide / (squares.sqrt() + self.eps)
        norm, scaled_norm = (one.norm(dim=(-2, -1), keepdim=True) for one in (wide, scaled))
        return (scaled * (norm / scaled_norm.clamp_min(self.eps))).to(updates.dtype)


def _norm(batch: Tensor, dim: int) -> Tensor:
    """Norms along `dim`, kept as a dimension, in fp32 or wider."""
    return (batch if batch.dtype == torch.float64 else batch.float()).norm(dim=dim, keepdim=True)

"""Decoupled weight decay of matrices in other forms than the usual one. Each is absent unless a configuration names it.

With weights p, the direction u that a step subtracts, its rate lr and lr * weight_decay = d, the usual form is
p <- p (1 - d) - lr u.
"""

from typing import Protocol

import torch
from torch import Tensor


class Decay(Protocol):
    """How a step decays weights and applies its directions."""

    def __call__(self, weights: list[Tensor], directions: list[Tensor], lr: float, decay: float) -> None:
        """Change `weights` in place; directions of the same shapes and dtypes."""
        ...


def decoupled(weights: list[Tensor], directions: list[Tensor], lr: float, decay: float) -> None:
    """p <- p (1 - d) - lr u (Loshchilov and Hutter, 2019)."""
    torch._foreach_mul_(weights, 1.0 - decay)
    torch._foreach_add_(weights, directions, alpha=-lr)


class AfterUpdate:
    """p <- (p - lr u) (1 - d): the decay also shrinks the update (the records of 2026-03-19 that decayed in their loop,
    after the optimiser's step)."""

    def __call__(self, weights: list[Tensor], directions: list[Tensor], lr: float, decay: float) -> None:
        """Change `weights` in place."""
        torch._foreach_add_(weights, directions, alpha=-lr)
        torch._foreach_mul_(weights, 1.0 - decay)


class HuberDecay:
    """p <- p - d clip(p, -threshold, threshold) - lr u: the gradient of a Huber penalty, which pulls large weights no
    more than those at the threshold (PR 2130, threshold 0.1, where it was never on). Raises ValueError when the
    threshold is not positive."""

    def __init__(self, *, threshold: float) -> None:
        if not threshold > 0.0:
            raise ValueError(f"Huber weight decay threshold={threshold} must be positive")
        self.threshold = threshold

    def __call__(self, weights: list[Tensor], directions: list[Tensor], lr: float, decay: float) -> None:
        """Change `weights` in place."""
        pulls = [weight.clamp(-self.threshold, self.threshold) for weight in weights]
        torch._foreach_add_(weights, pulls, alpha=-decay)
        torch._foreach_add_(weights, directions, alpha=-lr)


class CautiousDecay:
    """p <- p - d p [u p >= 0] - lr u: a weight that the update makes larger is not decayed (Chen et al., Cautious
    Weight Decay, 2025)."""

    def __call__(self, weights: list[Tensor], directions: list[Tensor], lr: float, decay: float) -> None:
        """Change `weights` in place."""
        pulls = [torch.where(u * p >= 0.0, p, 0.0) for p, u in zip(weights, directions, strict=True)]
        torch._foreach_add_(weights, pulls, alpha=-decay)
        torch._foreach_add_(weights, directions, alpha=-lr)

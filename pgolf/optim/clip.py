"""Clipping policies: how long the gradient of a step may be, and whose gradient that is."""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Clip(Protocol):
    """The longest L2 norm that a gradient may have.

    local: every rank clips its own gradient before the ranks are averaged; otherwise their average is clipped.
    """

    local: bool

    def limit(self, norm: Tensor) -> float:
        """The longest norm in this step, given the norm found (a scalar); called once a step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered between steps: numbers and lists."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...


class GlobalNorm:
    """The averaged gradient of all parameters is at most `norm` long. Raises ValueError when that is not positive."""

    local = False

    def __init__(self, *, norm: float) -> None:
        if not norm > 0.0:  # nor NaN
            raise ValueError(f"clip norm={norm} must be positive")
        self.norm = norm

    def limit(self, norm: Tensor) -> float:
        """The same in every step."""
        return self.norm

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class LocalNorm(GlobalNorm):
    """Each rank's own gradient is at most `norm` long, and the clipped gradients are averaged.

    So it is in the published scripts with parameter banks (PR 1530 and after); the result depends on the number of
    ranks.
    """

    local = True


class LyapunovNorm(GlobalNorm):
    """`norm`, tightened while the gradient grows: with the growth rate r = mean of ln(g[i+1] / g[i]) over the last
    `window` norms before clipping, max(norm * exp(-5 r), floor) when r > threshold (public search log of the contest).

    Four norms are needed before it acts. Raises ValueError for a floor above `norm`, a window under 4 and a negative
    threshold, which would lengthen gradients.
    """

    def __init__(self, *, norm: float, threshold: float = 0.05, window: int = 20, floor: float = 0.1) -> None:
        super().__init__(norm=norm)
        if not 0.0 < floor <= norm:
            raise ValueError(f"clip floor={floor} must be positive and at most norm={norm}")
        if window < 4:
            raise ValueError(f"clip window={window} must be at least 4")
        if not threshold >= 0.0:
            raise ValueError(f"clip threshold={threshold} must not be negative")
        self.threshold, self.floor = threshold, floor
        self.history: deque[float] = deque(maxlen=window)

    def limit(self, norm: Tensor) -> float:
        """The limit of this step; remembers `norm`."""
        if math.isfinite(found := float(norm)):
            self.history.append(max(found, 1e-8))
        if len(self.history) < 4:
            return self.norm
        rate = math.log(self.history[-1] / self.history[0]) / (len(self.history) - 1)  # the mean telescopes
        return max(self.norm * math.exp(-5.0 * rate), self.floor) if rate > self.threshold else self.norm

    def state_dict(self) -> dict[str, Any]:
        """The norms so far."""
        return {"history": list(self.history)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the norms."""
        self.history.clear()
        self.history.extend(state["history"])


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm of all elements of all gradients, a scalar tensor, as torch.nn.utils.get_total_norm computes it."""
    return torch.nn.utils.get_total_norm(gradients)


@torch.no_grad()
def shorten(gradients: Iterable[Tensor], norm: Tensor, limit: float) -> None:
    """Scale gradients of the given norm in place so that it becomes at most `limit` (torch's rule: limit / (norm +
    1e-6), at most 1)."""
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    for members in by_dtype.values():
        torch._foreach_mul_(members, factor)

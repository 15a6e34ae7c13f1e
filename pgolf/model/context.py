"""What a forward pass is told besides the tokens: attention back end, document boundaries, adapters."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pgolf.kernels.attend import Attention, sdpa
from pgolf.kernels.packing import Packing

HEAD_SLOT = -1
SITES = ("q", "k", "v", "o", "mlp", "head")


class Adapters(Protocol):
    """Additive deltas at named sites of virtual layers; test-time training attaches here."""

    def delta(self, slot: int, site: str, x: Tensor) -> Tensor | None:
        """The delta for input x [B, T, in_features] at (slot, site), or None when nothing is attached there."""


@dataclass(frozen=True)
class Context:
    """Everything that differs between training, scoring, calibration and test-time training.

    packing: boundaries of the documents in a packed row; None means that each row is one causal sequence.
    adapters: deltas at the sites `q k v o mlp head`. `o` and `mlp` read the normed block input (PR 1530).
    """

    attention: Attention = sdpa
    packing: Packing | None = None
    adapters: Adapters | None = None

    def adapt(self, slot: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        """y plus the delta that the adapters give for x, or y itself when there is none."""
        delta = self.adapters.delta(slot, site, x) if self.adapters is not None else None
        return y if delta is None else y + delta


PLAIN = Context()

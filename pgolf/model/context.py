"""What a forward pass is told besides the tokens: attention back end, kernels, document boundaries, adapters."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from pgolf.kernels.attend import Attention, sdpa
from pgolf.kernels.fused.kernels import UNFUSED, Fused
from pgolf.kernels.packing import Packing

HEAD_SLOT = -1
LAST = -1  # block
SITES = ("q", "k", "v", "o", "mlp", "head")


class Adapters(Protocol):
    """Additive deltas at named sites of virtual layers; test-time training attaches here."""

    def delta(self, slot: int, site: str, x: Tensor) -> Tensor | None:
        """The delta for input x [B, T, in_features] at (slot, site), or None when nothing is attached there."""


@dataclass
class Walk:
    """What one forward leaves for its later parts, and for the training loss.

    tokens: int64 [B, T], as the forward was given them. kept: tensors by (name, index), of parts that read what an
    earlier block or visit made. costs: auxiliary losses by name, scalars in nats already times their weight, of parts
    that have one; the training loss adds them. wanted: blocks (LAST: the stream before the final norm) whose output
    [B, T, dim], of their last visit, is kept as ("output", block); of several lanes their mean.
    """

    tokens: Tensor
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    costs: dict[str, Tensor] = field(default_factory=dict)
    wanted: frozenset[int] = frozenset()

    def charge(self, name: str, cost: Tensor) -> None:
        """Add a scalar to the auxiliary loss `name`."""
        self.costs[name] = self.costs[name] + cost if name in self.costs else cost

    def offer(self, block: int, streams: Sequence[Tensor]) -> None:
        """Keep the output of a block where it is wanted."""
        if block in self.wanted:
            self.kept["output", block] = streams[0] if len(streams) == 1 else torch.stack(list(streams)).mean(0)


@dataclass(frozen=True)
class Context:
    """Everything that differs between training, scoring, calibration and test-time training.

    packing: boundaries of the documents in a packed row; None means that each row is one causal sequence.
    adapters: deltas at the sites `q k v o mlp head`. `o` and `mlp` read the normed block input (PR 1530).
    walk: of the forward that is under way; None before it. fused: kernels that parts use where they can; training alone
    has some.
    """

    attention: Attention = sdpa
    packing: Packing | None = None
    adapters: Adapters | None = None
    walk: Walk | None = None
    fused: Fused = UNFUSED

    def begun(self, tokens: Tensor, wanted: frozenset[int] = frozenset()) -> "Context":
        """The same for one forward over `tokens`, int64 [B, T], with a walk of its own. Who wants to read what the
        forward leaves begins the walk himself, anew for each forward; wanted: see `Walk`."""
        return replace(self, walk=Walk(tokens, wanted=wanted))

    def adapt(self, slot: int, site: str, x: Tensor, y: Tensor) -> Tensor:
        """y plus the delta that the adapters give for x, or y itself when there is none."""
        delta = self.adapters.delta(slot, site, x) if self.adapters is not None else None
        return y if delta is None else y + delta


PLAIN = Context()

"""A query gain that has a bound (jzmyres' fork: a named term of its Lipschitz accounting).

Queries and keys are normed, so a head's scores lie within gain * sqrt(head_dim): a bound on the gain is one on how
sharp attention can become.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.model.roles import Part, constant

if TYPE_CHECKING:
    from pgolf.model.attention import CausalSelfAttention
    from pgolf.model.gpt import GPT
    from pgolf.model.vectors import Vectors


class BoundedGain(Part):
    """gain = maximum * sigmoid(raw) for each head, raw [num_heads] learned: never 0, never `maximum`.

    It takes the place of the parameter `q_gain`, and begins at the same gain. What decays raw pulls the gain towards
    half of the bound.
    """

    raw: nn.Parameter

    def __init__(self, num_heads: int, initial: float, maximum: float) -> None:
        super().__init__()
        self.maximum = maximum
        self.declare("raw", (num_heads,), "scalar", constant(math.log(initial / (maximum - initial))))

    def forward(self) -> Tensor:
        """The gains, [num_heads]."""
        return self.of(self.raw)

    def of(self, raw: Tensor) -> Tensor:
        """The gains of other values of `raw`, of the same shape."""
        return self.maximum * torch.sigmoid(raw)


class BoundedGains:
    """Bounds the query gains of every attention, and of every place in the plan that has its own (model/vectors).
    Raises ValueError for a bound that is not positive."""

    def __init__(self, *, maximum: float) -> None:
        if not maximum > 0.0:
            raise ValueError(f"query_gain.maximum={maximum} must be positive")
        self.maximum = maximum

    def fit(self, model: "GPT") -> None:
        """ValueError where no block has attention, and where a gain would not begin between 0 and the bound."""
        if not model.attentions:
            raise ValueError("query_gain: no block has attention (model/state_space); set model/query_gain=none")
        owners: list[CausalSelfAttention | Vectors] = [*model.attentions]
        owners += model.vectors.more if model.vectors is not None else []
        for owner in owners:
            initial = torch.empty(owner.num_heads, device="cpu")
            owner.inits["q_gain"](initial, torch.Generator())
            gain = initial[0].item()
            if not 0.0 < gain < self.maximum:
                raise ValueError(
                    f"query_gain.maximum={self.maximum} bounds gains that begin at model.qk_gain={gain:g}: give a "
                    "bound above it, and a gain above 0"
                )
            owner.withdraw("q_gain")
            owner.q_gain = BoundedGain(owner.num_heads, gain, self.maximum)

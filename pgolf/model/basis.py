"""Linear maps that are not one matrix of free elements: two thin factors, with or without a frozen random basis.

A basis is drawn from (seed, its name) wherever the model is made, and costs no byte of an artifact. What is trained,
quantised and adapted are matrices of `Linear`s, so optimisers, calibration and rules by name find them as any other.
"""

from torch import Tensor
from torch.nn.functional import linear

from pgolf.model.roles import Init, Linear, Part


class LowRankLinear(Part):
    """y = (x A) B with A [in, r] and B [r, out], kept transposed as `down.weight` [r, in] and `up.weight` [out, r]."""

    def __init__(self, in_features: int, out_features: int, rank: int, down: Init, up: Init) -> None:
        super().__init__()
        self.down = Linear(in_features, rank, "matrix", down)
        self.up = Linear(rank, out_features, "matrix", up)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return self.up(self.down(x))


class FrozenPlusLowRank(LowRankLinear):
    """y = x W^T + (x A) B: W [out, in] is frozen and drawn by `basis`, the buffer `basis`; A and B are trained."""

    basis: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, basis: Init, down: Init, up: Init) -> None:
        super().__init__(in_features, out_features, rank, down, up)
        self.declare_fixed("basis", (out_features, in_features), basis)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return linear(x, self.basis.to(x.dtype)) + super().forward(x)

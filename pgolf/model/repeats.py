"""MLPs that the repeated visits of depth recurrence have for themselves.

A repeat begins as a copy of its block's MLP when training comes to the plan that makes the visit (2026-03-31).
"""

from collections.abc import Callable

from torch import Tensor, nn

from pgolf.model.context import Context
from pgolf.model.mlp import Mlp
from pgolf.model.roles import Linear, Part, constant


class OwnMlp(nn.Module):
    """All matrices of the MLP once more (mode `full` of 2026-03-31). base: the block's MLP; make: makes another."""

    def __init__(self, base: Mlp, make: Callable[[], Mlp]) -> None:
        super().__init__()
        self.mlp = make()

    def sources(self) -> dict[str, str]:
        """Parameter here -> parameter of the block's MLP that it begins as."""
        return {f"mlp.{name}": name for name, _ in self.mlp.named_parameters()}

    def forward(self, n: Tensor, slot: int, context: Context, base: Mlp) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, dim]; the block's MLP is not read."""
        return self.mlp(n, slot, context)


class OwnDown(Part):
    """The down matrix alone once more (mode `down`); the rest is the block's. base: the block's MLP."""

    def __init__(self, base: Mlp, make: Callable[[], Mlp]) -> None:
        super().__init__()
        if not isinstance(getattr(base, "proj", None), Linear):
            raise ValueError(f"repeat_mlp=down: {type(base).__name__} has no single down matrix; choose full")
        out_features, in_features = base.proj.weight.shape
        proj = Linear(in_features, out_features, "matrix", constant(0.0))
        self.mlp = nn.ModuleDict({"proj": proj})  # named as in an MLP, so that rules by name find it

    def sources(self) -> dict[str, str]:
        """Parameter here -> parameter of the block's MLP that it begins as."""
        return {f"mlp.{name}": name for name, _ in self.mlp.named_parameters()}

    def forward(self, n: Tensor, slot: int, context: Context, base: Mlp) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, dim]."""
        return context.adapt(slot, "mlp", n, self.mlp["proj"](base.features(n, context)))

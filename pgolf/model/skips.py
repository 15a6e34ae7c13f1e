"""How an early output reaches a late block: where the weights of U-Net skips start, and skips through a bottleneck."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import ModuleList
from torch.nn.functional import gelu

from pgolf.model.roles import Linear, Part, constant, orthogonal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


class SkipStart:
    """start: initial value of the skip weights. ValueError for a model without skips."""

    def __init__(self, *, start: float) -> None:
        self.start = start

    def fit(self, model: "GPT") -> None:
        """Let the skip weights start there."""
        _check_skips(model)
        model.inits["skip_weights"] = constant(self.start)


class CompressedSkips:
    """`SkipCompressor`s in place of the skip weights; skip gates stay. divisor: hidden units are dim / divisor, rounded
    down. ValueError for a model without skips, or too narrow for one hidden unit."""

    def __init__(self, *, divisor: int) -> None:
        if divisor < 1:
            raise ValueError(f"skips.divisor={divisor} must be at least 1")
        self.divisor = divisor

    def fit(self, model: "GPT") -> None:
        """Take the skip weights away and give every skip its compressor."""
        _check_skips(model)
        hidden, rows = model.dim // self.divisor, len(model.skip_weights)
        if hidden < 1:
            raise ValueError(f"skips.divisor={self.divisor} leaves no hidden unit at model.dim={model.dim}")
        model.withdraw("skip_weights")
        model.skip_compressors = ModuleList(SkipCompressor(model.dim, hidden) for _ in range(rows))


class SkipCompressor(Part):
    """W_up gelu(W_down x), dim -> hidden -> dim, both orthogonal at first (a fork of PR 4 by johnlennyt5, known from
    its description: the start is chosen here)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc = Linear(dim, hidden, "matrix", orthogonal())
        self.proj = Linear(hidden, dim, "matrix", orthogonal())

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, dim] -> [B, T, dim]."""
        return self.proj(gelu(self.fc(x)))


def _check_skips(model: "GPT") -> None:
    if "skip_weights" not in model.roles:
        raise ValueError("skips: the plan has no U-Net skips (model.depth.skips)")

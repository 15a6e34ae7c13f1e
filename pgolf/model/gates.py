"""Gates on the output of attention heads, before the output projection."""

from typing import Literal

import torch
from torch import Tensor, nn

from pgolf.model.roles import Linear, Part, constant, normal


def _check_width(width: int, dim: int) -> None:
    if not 0 < width <= dim:
        raise ValueError(f"gate width={width} must lie between 1 and model.dim={dim}")


class HeadGate(Part):
    """Per-head gate g = sigmoid(scale * W n[:width]); n is the normed block input.

    width 12 with zero initial weights, which give exactly 1/2 on every head, is the sparse gate of PR 1787; width None
    reads all of n (PR 1736). Cost: num_heads * width parameters per block.
    """

    attn_gate_w: nn.Parameter

    def __init__(self, dim: int, num_heads: int, *, width: int | None, scale: float, init_std: float) -> None:
        super().__init__()
        self.width = dim if width is None else width
        _check_width(self.width, dim)
        self.scale = scale
        self.declare("attn_gate_w", (num_heads, self.width), "gate", normal(init_std))

    def forward(self, n: Tensor, q: Tensor) -> Tensor:
        """n [B, T, dim] -> gate [B, T, num_heads, 1]; the query projection q is not read."""
        score = torch.nn.functional.linear(n[..., : self.width], self.attn_gate_w.to(n.dtype))
        return torch.sigmoid(self.scale * score)[..., None]


class AttentionOutGate(Part):
    """Per-head gate g = 2 sigmoid(W z[:width]), exactly 1 at first (PR 1667).

    source: what z is; "proj": the normed block input, "q": the query projection before its norm.
    """

    def __init__(self, dim: int, num_heads: int, *, width: int, source: Literal["proj", "q"]) -> None:
        super().__init__()
        _check_width(width, dim)
        self.width, self.source = width, source
        self.attn_gate_proj = Linear(width, num_heads, "gate", constant(0.0))

    def forward(self, n: Tensor, q: Tensor) -> Tensor:
        """n, q [B, T, dim] -> gate [B, T, num_heads, 1]."""
        z = n if self.source == "proj" else q
        return 2.0 * torch.sigmoid(self.attn_gate_proj(z[..., : self.width]))[..., None]

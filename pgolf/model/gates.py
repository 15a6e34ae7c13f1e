"""Gates on the output of attention heads."""

import torch
from torch import Tensor

from pgolf.model.roles import Part, normal


class SparseGate(Part):
    """Per-head gate g = sigmoid(scale * W n[:width]) on the attention output, before the output projection (PR 1787).

    n is the normed block input. Zero initial weights give exactly 1/2 on every head.
    Cost: num_heads * width parameters per block.
    """

    attn_gate_w: torch.nn.Parameter

    def __init__(self, dim: int, num_heads: int, *, width: int = 12, scale: float = 1.0, init_std: float = 0.0) -> None:
        super().__init__()
        if not 0 < width <= dim:
            raise ValueError(f"gate width={width} must lie between 1 and model.dim={dim}")
        self.width = width
        self.scale = scale
        self.declare("attn_gate_w", (num_heads, width), "gate", normal(init_std))

    def forward(self, n: Tensor) -> Tensor:
        """n [B, T, dim] -> gate [B, T, num_heads, 1]."""
        score = torch.nn.functional.linear(n[..., : self.width], self.attn_gate_w.to(n.dtype))
        return torch.sigmoid(self.scale * score)[..., None]

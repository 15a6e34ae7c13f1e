"""Gates on the output of attention heads, before the output projection, and on what a block does."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pgolf.model.context import Context
from pgolf.model.fitting import on_one_stream
from pgolf.model.roles import Linear, Part, constant, normal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


def _check_width(width: int, dim: int) -> None:
    if not 0 < width <= dim:
        raise ValueError(f"gate width={width} must lie between 1 and model.dim={dim}")


class HeadGate(Part):
    """Per-head gate g = sigmoid(scale * W n[:width] + b); n is the normed block input.

    width 12 with zero initial weights, which give exactly 1/2 on every head, is the sparse gate of PR 1787; width None
    reads all of n (PR 1736). bias: initial value of b, learned for each head: 4 (2026-03-23), 2.94 (a fork of PR 4 by
    taka6745); None: no b. Cost: num_heads * width parameters per block, and num_heads for b.
    """

    attn_gate_w: nn.Parameter
    attn_gate_b: nn.Parameter

    def __init__(
        self, dim: int, num_heads: int, *, width: int | None, scale: float, init_std: float, bias: float | None = None
    ) -> None:
        super().__init__()
        self.width = dim if width is None else width
        _check_width(self.width, dim)
        self.scale, self.biased = scale, bias is not None
        self.declare("attn_gate_w", (num_heads, self.width), "gate", normal(init_std))
        if bias is not None:
            self.declare("attn_gate_b", (num_heads,), "gate", constant(bias))

    def forward(self, n: Tensor, q: Tensor) -> Tensor:
        """n [B, T, dim] -> gate [B, T, num_heads, 1]; the query projection q is not read."""
        score = torch.nn.functional.linear(n[..., : self.width], self.attn_gate_w.to(n.dtype))
        score = self.scale * score
        return torch.sigmoid(score + self.attn_gate_b.to(score.dtype) if self.biased else score)[..., None]


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


class BlockGate(Part):
    """u + g (x - u) with g = sigmoid(w u + b) for each place, u what entered the block and x what leaves it; the gate
    reads u without a gradient to it (DTG, 2026-03-25). block_gate_w [1, dim] starts at 0, block_gate_b at `start`."""

    block_gate_w: nn.Parameter
    block_gate_b: nn.Parameter

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.declare("block_gate_w", (1, dim), "gate", constant(0.0))
        self.declare("block_gate_b", (1,), "gate", constant(start))

    def forward(self, u: Tensor, x: Tensor, context: Context) -> Tensor:
        """u: input of the block, mixed with the embedding, and x: its output, [B, T, dim] -> [B, T, dim]."""
        score = torch.nn.functional.linear(u.detach(), self.block_gate_w.to(u.dtype))
        gate = torch.sigmoid(score + self.block_gate_b.to(score.dtype))
        return torch.lerp(u, x, gate.to(x.dtype))


class BlockGates:
    """A `BlockGate` behind every block that is not on lanes alone; on lanes it does nothing. start: initial b."""

    def __init__(self, *, start: float) -> None:
        self.start = start

    def fit(self, model: "GPT") -> None:
        """Put one behind every such block. ValueError when there is none."""
        for block in on_one_stream(model, "block_gate"):
            block.ends["gate"] = BlockGate(model.dim, self.start)

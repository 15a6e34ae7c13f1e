"""A transformer block: attention and MLP on a residual stream that is first mixed with the embedding."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Pass
from pgolf.model.roles import Init, Part, constant

AttentionFactory = Callable[[int, float, int, int], CausalSelfAttention]
MlpFactory = Callable[[int], nn.Module]
MixInit = Literal["stream", "phase"]


class Block(Part):
    """u = m0 x + m1 x0; v = u + attn_scale * attention(norm(u) s); out = v + mlp_scale * mlp(norm(v) s), with
    s = 1 / sqrt(depth + 1) when layer_scale is on.

    In a "parallel" pass the MLP reads norm(u) s too (PR 1493). Lanes (pgolf.model.lanes) combine `mix`, `attend` and
    `feed` in their own way. mix_init: "stream" starts at m0 = 1, m1 = 0; "phase" at m0 = sigmoid(3 (i/(L - 1) - 1/2)),
    m1 = 1 - m0, so that early blocks lean on x0 (2026-03-19).
    """

    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter
    resid_mix: nn.Parameter

    def __init__(
        self,
        dim: int,
        layer: int,
        num_layers: int,
        qk_gain: float,
        attention: AttentionFactory,
        mlp: MlpFactory,
        layer_scale: bool,
        mix_init: MixInit,
    ) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.attn = attention(dim, qk_gain, layer, num_layers)
        self.mlp = mlp(dim)
        self.declare("attn_scale", (dim,), "scalar", constant(1.0))
        self.declare("mlp_scale", (dim,), "scalar", constant(1.0))
        at = layer / (num_layers - 1) if num_layers > 1 else 1.0
        kept = 1.0 if mix_init == "stream" else 1.0 / (1.0 + math.exp(-3.0 * (at - 0.5)))
        self.declare("resid_mix", (2, dim), "scalar", _rows(kept, 1.0 - kept))

    def site_outputs(self) -> dict[str, int]:
        """Width of the output at each adapter site of the block."""
        dim = self.resid_mix.shape[1]
        kv_dim = self.attn.num_kv_heads * self.attn.head_dim
        return {"q": dim, "k": kv_dim, "v": kv_dim, "o": dim, "mlp": dim}

    def mix(self, x: Tensor, x0: Tensor) -> Tensor:
        """m0 x + m1 x0, [B, T, dim]."""
        mix = self.resid_mix.to(x.dtype)
        return torch.addcmul(mix[0] * x, mix[1], x0)

    def normed(self, x: Tensor, step: Pass) -> Tensor:
        """norm(x) s, [B, T, dim]: what attention and MLP read."""
        return rms_norm(x, (step.depth + 1) ** -0.5 if self.layer_scale else 1.0)

    def forward(self, x: Tensor, x0: Tensor, step: Pass, context: Context) -> Tensor:
        """x, x0 [B, T, dim] -> [B, T, dim]."""
        u = self.mix(x, x0)
        n = self.normed(u, step)
        v = torch.addcmul(u, self.attn_scale.to(x.dtype), self.attn(n, step.slot, context))
        if step.form == "sequential":
            n = self.normed(v, step)
        return torch.addcmul(v, self.mlp_scale.to(x.dtype), self.mlp(n, step.slot, context))

    def attend(self, u: Tensor, step: Pass, context: Context) -> Tensor:
        """attn_scale * attention(norm(u) s), [B, T, dim]."""
        return self.attn_scale.to(u.dtype) * self.attn(self.normed(u, step), step.slot, context)

    def feed(self, v: Tensor, step: Pass, context: Context) -> Tensor:
        """mlp_scale * mlp(norm(v) s), [B, T, dim]."""
        return self.mlp_scale.to(v.dtype) * self.mlp(self.normed(v, step), step.slot, context)


def _rows(first: float, second: float) -> Init:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor[0].fill_(first)
        tensor[1].fill_(second)

    return fill

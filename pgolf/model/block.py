"""A transformer block: attention and MLP on a residual stream that is first mixed with the embedding."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context
from pgolf.model.mlp import Mlp
from pgolf.model.norm import rms_norm
from pgolf.model.phinta import PhiNTA
from pgolf.model.plan import Pass
from pgolf.model.repeats import OwnDown, OwnMlp
from pgolf.model.roles import Init, Part, constant
from pgolf.model.smear import MlpSmear
from pgolf.model.state_space import Mamba2
from pgolf.model.vectors import VectorSet

RepeatFactory = Callable[[Mlp, Callable[[], Mlp]], OwnMlp | OwnDown]
AttentionFactory = Callable[[int, float, int, int], CausalSelfAttention]
MlpFactory = Callable[[int, int, int], Mlp]
MixInit = Literal["stream", "phase"]


class WithoutAttention:
    """The blocks that are an MLP alone, without matrices of attention (2026-03-31: `disable_layer0_attn`)."""

    def __init__(self, *, layers: list[int]) -> None:
        self.layers = layers


class Block(Part):
    """u = m0 x + m1 x0; v = u + attn_scale * attention(norm(u) s); out = v + mlp_scale * mlp(norm(v) s), with
    s = 1 / sqrt(depth + 1) when layer_scale is on.

    In a "parallel" pass the MLP reads norm(u) s too (PR 1493). Lanes (pgolf.model.lanes) combine `mix`, `attend` and
    `feed` in their own way. mix_init: "stream" starts at m0 = 1, m1 = 0; "phase" at m0 = sigmoid(3 (i/(L - 1) - 1/2)),
    m1 = 1 - m0, so that early blocks lean on x0 (2026-03-19).

    attention=None: v = u. A state space (pgolf.model.state_space) takes the place of attention. repeat: MLPs of the
    `repeats` visits after the first; None: the block's own. Methods take the `vectors` of another place in the plan
    instead of the block's (pgolf.model.vectors).
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
        attention: AttentionFactory | None,
        mlp: MlpFactory,
        layer_scale: bool,
        mix_init: MixInit,
        repeat: RepeatFactory | None = None,
        repeats: int = 0,
    ) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.attn = attention(dim, qk_gain, layer, num_layers) if attention is not None else None
        self.mlp = mlp(dim, layer, num_layers)
        self.repeats: list[OwnMlp | OwnDown] = nn.ModuleList(  # type: ignore[assignment]
            [] if repeat is None else [repeat(self.mlp, partial(mlp, dim, layer, num_layers)) for _ in range(repeats)]
        )
        if self.attn is not None:
            self.declare("attn_scale", (dim,), "scalar", constant(1.0))
        self.declare("mlp_scale", (dim,), "scalar", constant(1.0))
        at = layer / (num_layers - 1) if num_layers > 1 else 1.0
        kept = 1.0 if mix_init == "stream" else 1.0 / (1.0 + math.exp(-3.0 * (at - 0.5)))
        self.declare("resid_mix", (2, dim), "scalar", _rows(kept, 1.0 - kept))
        # what a Fitting may give
        self.state_space: Mamba2 | None = None  # it takes attention away then
        self.phinta: PhiNTA | None = None
        self.mlp_smear: MlpSmear | None = None
        self.ends = nn.ModuleDict()  # called as end(u, x, context) on what entered the block, mixed, and what leaves it

    def site_outputs(self) -> dict[str, int]:
        """Width of the output at each adapter site of the block."""
        dim = self.resid_mix.shape[1]
        if self.attn is None:
            return {"mlp": dim}
        kv_dim = self.attn.num_kv_heads * self.attn.head_dim
        return {"q": dim, "k": kv_dim, "v": kv_dim, "o": dim, "mlp": dim}

    def vectors(self) -> VectorSet:
        """The block's own, for another block that is walked in its place. ValueError without attention."""
        if self.attn is None:
            raise ValueError("a block without attention has no vectors for another")
        return VectorSet(self.attn_scale, self.mlp_scale, self.resid_mix, self.attn.gains)

    def mix(self, x: Tensor, x0: Tensor, vectors: VectorSet | None = None) -> Tensor:
        """m0 x + m1 x0, [B, T, dim]."""
        mix = (self if vectors is None else vectors).resid_mix.to(x.dtype)
        return torch.addcmul(mix[0] * x, mix[1], x0)

    def normed(self, x: Tensor, step: Pass) -> Tensor:
        """norm(x) s, [B, T, dim]: what attention and MLP read."""
        return rms_norm(x, (step.depth + 1) ** -0.5 if self.layer_scale else 1.0)

    def forward(self, x: Tensor, x0: Tensor, step: Pass, context: Context, vectors: VectorSet | None = None) -> Tensor:
        """x, x0 [B, T, dim] -> [B, T, dim]."""
        u = v = self.mix(x, x0, vectors)
        n = self.normed(u, step)
        mixed = self._mixed(n, step, context, vectors)
        if mixed is not None:
            scale = (self if vectors is None else vectors).attn_scale
            v = torch.addcmul(u, scale.to(x.dtype), mixed)
            if step.form == "sequential":
                n = self.normed(v, step)
        scale = (self if vectors is None else vectors).mlp_scale
        return self.ended(u, torch.addcmul(v, scale.to(x.dtype), self._fed(n, step, context)), context)

    def ended(self, u: Tensor, x: Tensor, context: Context) -> Tensor:
        """What leaves the block on one stream, [B, T, dim], from what entered it, mixed, and what attention and MLP
        made of that."""
        for end in self.ends.values():
            x = end(u, x, context)
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        """What leaves the block on one stream or one lane, [B, T, dim], after its PhiNTA where it has one."""
        return x if self.phinta is None else self.phinta(x)

    def attend(self, u: Tensor, step: Pass, context: Context, vectors: VectorSet | None = None) -> Tensor:
        """attn_scale * attention(norm(u) s), [B, T, dim]; zero without attention."""
        mixed = self._mixed(self.normed(u, step), step, context, vectors)
        if mixed is None:
            return torch.zeros_like(u)
        return (self if vectors is None else vectors).attn_scale.to(u.dtype) * mixed

    def feed(self, v: Tensor, step: Pass, context: Context, vectors: VectorSet | None = None) -> Tensor:
        """mlp_scale * mlp(norm(v) s), [B, T, dim]."""
        scale = (self if vectors is None else vectors).mlp_scale
        return scale.to(v.dtype) * self._fed(self.normed(v, step), step, context)

    def _mixed(self, n: Tensor, step: Pass, context: Context, vectors: VectorSet | None) -> Tensor | None:
        """Attention, or the state space in its place, on normed input [B, T, dim]; None where the block has neither."""
        if self.state_space is not None:
            return self.state_space(n, context)
        if self.attn is None:
            return None
        return self.attn(n, step.slot, context, None if vectors is None else vectors.q_gain)

    def _fed(self, n: Tensor, step: Pass, context: Context) -> Tensor:
        """The MLP of this visit on normed input [B, T, dim]."""
        if self.mlp_smear is not None:
            n = self.mlp_smear(n, context)
        if step.visit and len(self.repeats):
            return self.repeats[step.visit - 1](n, step.slot, context, self.mlp)
        return self.mlp(n, step.slot, context)


def _rows(first: float, second: float) -> Init:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor[0].fill_(first)
        tensor[1].fill_(second)

    return fill

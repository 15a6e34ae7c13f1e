"""Grouped-query causal self-attention with normed queries and keys."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from pgolf.model.context import Context
from pgolf.model.differential import Difference
from pgolf.model.norm import rms_norm
from pgolf.model.roles import Linear, Part, constant, orthogonal
from pgolf.model.rope import Rotary
from pgolf.model.values import ValueResidual, with_embedding
from pgolf.model.vectors import of_heads


class CausalSelfAttention(Part):
    """q, k, v projections; RMSNorm on each q and k head; partial RoPE; a learned gain per query head; causal
    attention; output projection.

    num_heads query heads share num_kv_heads key/value heads. exclude: optional XSA, made as
    exclude(num_heads, layer, num_layers), which gives None for a layer without it. gate: optional per-head gate on the
    output, made as gate(dim, num_heads) and fed the normed block input and the query projection. value_residual:
    optional mix with the first layer's values, made as value_residual(layer). Raises ValueError when
    a count of heads is below 1, dim is not divisible by num_heads, num_heads not by num_kv_heads, or the rotary
    dimensions exceed the head.
    """

    q_gain: nn.Parameter | nn.Module

    def __init__(
        self,
        dim: int,
        qk_gain: float,
        layer: int,
        num_layers: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        rope: Rotary,
        exclude: Callable[[int, int, int], nn.Module | None] | None,
        gate: Callable[[int, int], nn.Module] | None,
        value_residual: Callable[[int], ValueResidual] | None = None,
    ) -> None:
        super().__init__()
        if min(num_heads, num_kv_heads) < 1:
            raise ValueError(f"attention.num_heads={num_heads} and num_kv_heads={num_kv_heads} must be at least 1")
        if dim % num_heads:
            raise ValueError(f"model.dim={dim} is not divisible by attention.num_heads={num_heads}")
        if num_heads % num_kv_heads:
            raise ValueError(f"attention.num_heads={num_heads} is not divisible by num_kv_heads={num_kv_heads}")
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        if rope.dims > self.head_dim:
            raise ValueError(f"attention.rope.dims={rope.dims} exceeds the head dimension {self.head_dim}")
        self.rope = rope
        kv_dim = num_kv_heads * self.head_dim
        self.c_q = Linear(dim, dim, "matrix", orthogonal())
        self.c_k = Linear(dim, kv_dim, "matrix", orthogonal())
        self.c_v = Linear(dim, kv_dim, "matrix", orthogonal())
        self.proj = Linear(dim, dim, "matrix", constant(0.0))
        self.declare("q_gain", (num_heads,), "scalar", constant(qk_gain))
        self.exclude = exclude(num_heads, layer, num_layers) if exclude is not None else None
        self.gate = gate(dim, num_heads) if gate is not None else None
        self.difference: Difference | None = None
        self.entmax: nn.Module | None = None  # in the place of a back end's softmax
        self.value_residual = value_residual(layer) if value_residual is not None else None

    @property
    def maps(self) -> int:
        """How often a back end is called for one pass."""
        return 1 if self.difference is None else self.difference.maps

    @property
    def gains(self) -> Tensor:
        """The gain of every query head, [num_heads]."""
        return of_heads(self.q_gain)

    def forward(self, n: Tensor, slot: int, context: Context, gain: Tensor | None = None) -> Tensor:
        """n: normed block input [B, T, dim] -> [B, T, dim]. gain [num_heads]: instead of its own."""
        projected = [
            context.adapt(slot, site, n, projection(n))
            for site, projection in (("q", self.c_q), ("k", self.c_k), ("v", self.c_v))
        ]
        projected[2] = with_embedding(projected[2], slot, context)
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in projected)
        if self.value_residual is not None:
            v = self.value_residual(v, context)
        gain = self.gains if gain is None else gain
        q, k = self._placed(q, context, gain), self._placed(k, context)
        y = self._attended(q, k, v, context)
        if self.exclude is not None:
            y = self.exclude(y, v, context.walk)
        if self.gate is not None:
            y = y * self.gate(n, projected[0])
        return context.adapt(slot, "o", n, self.proj(y.flatten(2)))

    def _placed(self, x: Tensor, context: Context, gain: Tensor | None = None) -> Tensor:
        """Queries or keys [B, T, heads, head_dim], normed and rotated, times the gain of their head [heads]."""
        if context.fused.norm_rotary is not None and self.fusable:
            return context.fused.norm_rotary(x, *self.rope.tables(x.shape[1], x.device), gain)
        x = self.rope(rms_norm(x)) if self.difference is None else self.difference.placed(x, self.rope)
        return x if gain is None else x * gain[:, None].to(x.dtype)

    @property
    def fusable(self) -> bool:
        """Whether the fused kernel norms and rotates its heads: whole ones, by the tables of `Rotary`."""
        return self.difference is None and type(self.rope) is Rotary

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """[B, T, num_heads, head_dim]."""
        if self.entmax is not None:
            context = replace(context, attention=self.entmax)
        if self.difference is not None:
            return self.difference(q, k, v, context)
        return context.attention(q, k, v, context.packing)

"""What attention reads as values besides its own projection: an embedding of the token, or the first layer's values."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pgolf.model.context import Context, Walk
from pgolf.model.embedding import Embedding
from pgolf.model.plan import LayerPlan
from pgolf.model.roles import Linear, Part, constant, orthogonal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

EMBEDDED, FIRST = "value_embedding", "first_value"  # names in Walk.kept: the first by slot, the other at 0


class ValueEmbeddings:
    """A table of tokens beside the embedding, whose rows are added to the values of the last layers (2026-03-22).

    dim: columns of the table, which starts at N(0, table_std^2). scale: initial value of a learned factor. last: in how
    many layers. by: what a layer is, a "block", or a "place" in the plan, so that recurrence, which makes the plan
    longer, moves the embeddings to earlier blocks (2026-03-31). Raises ValueError for sizes below 1, a negative
    deviation, and where table and factor both start at zero.
    """

    def __init__(self, *, dim: int, table_std: float, scale: float, last: int, by: Literal["block", "place"]) -> None:
        if min(dim, last) < 1:
            raise ValueError(f"value_embedding.dim={dim} and last={last} must be at least 1")
        if table_std < 0 or table_std == scale == 0:
            raise ValueError(
                f"value_embedding.table_std={table_std} must not be negative, nor be 0 together with scale={scale}: "
                "neither would have a gradient, ever"
            )
        self.dim, self.table_std, self.scale, self.last, self.by = dim, table_std, scale, last, by

    def fit(self, model: "GPT") -> None:
        """Give the model its table. ValueError where there are not so many layers, or none of them has attention."""
        layers = len(model.blocks)
        if self.last > layers:
            raise ValueError(f"value_embedding.last={self.last} of {layers} layers")
        chosen = range(layers - self.last, layers)
        if all(model.blocks[layer].attn is None for layer in chosen):
            raise ValueError(f"value_embedding.last={self.last}: none of these blocks has attention")
        kv_dim = model.attention.num_kv_heads * model.attention.head_dim
        model.value_embedding = ValueEmbedding(model.vocab_size, kv_dim, layers - self.last, self)


class ValueEmbedding(Part):
    """lambda_l * scale * W table[x_t] for the layers l from `first_layer` on; W [kv_dim, dim] starts orthogonal, the
    published initialisation having overridden the zeros that its constructor asked for, lambda_l at 1."""

    scale: nn.Parameter
    layer_scales: nn.Parameter

    def __init__(self, vocab_size: int, kv_dim: int, first_layer: int, settings: ValueEmbeddings) -> None:
        super().__init__()
        self.first_layer, self.last, self.by = first_layer, settings.last, settings.by
        self.embed = Embedding(vocab_size, settings.dim, settings.table_std, "normal")
        self.proj = Linear(settings.dim, kv_dim, "matrix", orthogonal())
        self.declare("scale", (1,), "scalar", constant(settings.scale))
        self.declare("layer_scales", (settings.last,), "scalar", constant(1.0))

    def forward(self, dtype: torch.dtype, plan: LayerPlan, walk: Walk) -> None:
        """Leave [B, T, kv_dim] for every pass of the plan that takes some; dtype: of the stream."""
        values = self.proj(self.embed(walk.tokens).to(dtype))
        values = self.scale.to(values.dtype) * values
        for step in plan.passes:
            row = (step.block if self.by == "block" else step.slot) - self.first_layer
            if 0 <= row < self.last:
                walk.kept[EMBEDDED, step.slot] = self.layer_scales[row].to(values.dtype) * values


def with_embedding(v: Tensor, slot: int, context: Context) -> Tensor:
    """v [B, T, kv_dim], with the value embedding of its place where there is one."""
    added = context.walk.kept.get((EMBEDDED, slot)) if context.walk is not None else None
    return v if added is None else v + added


class ValueResidual(Part):
    """Values mixed with those of the first attention of the forward, value embeddings included, which stay as they are.

    form: "learned": a v_first + b v, a and b learned from 1/2 each (2026-03-23). "gated": v + sigmoid(alpha) v_first,
    alpha learned from 0 (2026-03-25). Layer 0 has no parameters: it is the first, or takes nothing on later visits.
    """

    value_lambda: nn.Parameter
    value_alpha: nn.Parameter

    def __init__(self, layer: int, *, form: Literal["learned", "gated"]) -> None:
        super().__init__()
        self.takes, self.form = layer > 0, form
        if self.takes and form == "learned":
            self.declare("value_lambda", (2,), "scalar", constant(0.5))
        elif self.takes:
            self.declare("value_alpha", (1,), "scalar", constant(0.0))

    def forward(self, v: Tensor, context: Context) -> Tensor:
        """v [B, T, G, d] -> [B, T, G, d]."""
        assert context.walk is not None  # GPT.forward began it
        first = context.walk.kept.setdefault((FIRST, 0), v)
        if first is v or not self.takes:
            return v
        if self.form == "gated":
            return torch.addcmul(v, torch.sigmoid(self.value_alpha).to(v.dtype), first)
        share = self.value_lambda.to(v.dtype)
        return share[0] * first + share[1] * v

"""Differential attention (Ye et al. 2024, arXiv 2410.05258): the difference of two softmax maps."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.model.context import Context
from pgolf.model.norm import rms_norm
from pgolf.model.roles import Part, normal
from pgolf.model.rope import Rotary

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

LAMBDA_STD = 0.1


class Difference(Part):
    """y = (1 - l0) norm((softmax(q1 k1^T) - l softmax(q2 k2^T)) v) for every head, where q1 and k1 are the first halves
    of a head's queries and keys and q2, k2 the second, and v is whole. l = exp(a1 . b1) - exp(a2 . b2) + l0 is one
    number for the layer, l0 = 0.8 - 0.6 exp(-0.3 layer).

    Each half is normed and rotated by itself. The norm over the head has no weights: the output projection has them.
    diff_lambda [4, head_dim / 2] holds a1, b1, a2, b2, drawn from N(0, 0.1^2).

    A back end computes one map at a time, over whole heads: with the other half of the queries at zero, q . k is
    q1 . k1 or q2 . k2, whatever the keys hold there. So attention is called twice, at the head dimension it has anyway.

    Raises ValueError for a head that has no halves, or whose halves do not hold the rotated dimensions.
    """

    diff_lambda: nn.Parameter
    maps = 2  # calls of the back end

    def __init__(self, head_dim: int, layer: int, rotated: int) -> None:
        super().__init__()
        if head_dim % 2 or rotated > head_dim // 2:
            raise ValueError(
                f"differential: half of the head dimension {head_dim} must be whole and hold the rotated "
                f"dimensions, model.attention.rope.dims={rotated}"
            )
        self.half_dim = head_dim // 2
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.declare("diff_lambda", (4, self.half_dim), "scalar", normal(LAMBDA_STD))

    def placed(self, x: Tensor, rope: Rotary) -> Tensor:
        """Queries or keys [B, T, H, d], each half normed and rotated."""
        return rope(rms_norm(x.unflatten(-1, (2, self.half_dim)).flatten(2, 3))).unflatten(2, (-1, 2)).flatten(3)

    def share(self) -> Tensor:
        """l, an fp32 scalar."""
        with torch.autocast(self.diff_lambda.device.type, enabled=False):  # which would round the products
            first, of_first, second, of_second = self.diff_lambda.float()
            return torch.exp(first @ of_first) - torch.exp(second @ of_second) + self.initial

    def forward(self, q: Tensor, k: Tensor, v: Tensor, context: Context) -> Tensor:
        """q [B, T, H, d], k and v [B, T, G, d] -> [B, T, H, d]."""
        first, second = (q * math.sqrt(2.0)).split(
            self.half_dim, dim=-1
        )  # a back end divides by sqrt(d), halves want d / 2
        nothing = torch.zeros_like(first)
        one = context.attention(torch.cat((first, nothing), dim=-1), k, v, context.packing)
        other = context.attention(torch.cat((nothing, second), dim=-1), k, v, context.packing)
        return (1.0 - self.initial) * rms_norm(one - self.share().to(one.dtype) * other)


class Differential:
    """Gives every attention the difference of two maps in place of one."""

    def fit(self, model: "GPT") -> None:
        """ValueError where heads cannot be halved, and where no block has attention."""
        if not model.attentions:
            raise ValueError("differential: no block has attention (model/state_space); set model/differential=none")
        for layer, block in enumerate(model.blocks):
            if block.attn is not None:
                block.attn.difference = Difference(block.attn.head_dim, layer, block.attn.rope.dims)

"""Gains, scales and mixes that belong to a place in the plan instead of a block."""

from typing import NamedTuple

from torch import Tensor, nn

from pgolf.model.roles import Part, constant


class VectorSet(NamedTuple):
    """The vectors of one place: attn_scale [dim], mlp_scale [dim], resid_mix [2, dim], q_gain [num_heads]."""

    attn_scale: Tensor
    mlp_scale: Tensor
    resid_mix: Tensor
    q_gain: Tensor


def of_heads(q_gain: nn.Parameter | nn.Module) -> Tensor:
    """The gains of query heads, [num_heads]: a parameter, or what a part makes (pgolf.model.query_gain)."""
    return q_gain if isinstance(q_gain, Tensor) else q_gain()


class Vectors(Part):
    """The vectors of a place that no block has, begun as in a block whose stream is not mixed with the embedding."""

    attn_scale: nn.Parameter
    mlp_scale: nn.Parameter
    resid_mix: nn.Parameter
    q_gain: nn.Parameter | nn.Module

    def __init__(self, dim: int, num_heads: int, qk_gain: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.declare("attn_scale", (dim,), "scalar", constant(1.0))
        self.declare("mlp_scale", (dim,), "scalar", constant(1.0))
        self.declare("resid_mix", (2, dim), "scalar", _stream)
        self.declare("q_gain", (num_heads,), "scalar", constant(qk_gain))

    def set(self) -> VectorSet:
        """All of them."""
        return VectorSet(self.attn_scale, self.mlp_scale, self.resid_mix, of_heads(self.q_gain))


class VirtualVectors(nn.Module):
    """Vectors by virtual layer (2026-03-31): the pass in place p of a plan reads those of block p, whichever block it
    visits, and passes behind the last block those made here. So recurrence, when it comes, gives the later blocks other
    vectors. dim, num_heads, qk_gain: of the sets; places: of the deepest plan, num_layers of them those of blocks."""

    def __init__(self, dim: int, num_heads: int, qk_gain: float, num_layers: int, places: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.more: list[Vectors] = nn.ModuleList(  # type: ignore[assignment]
            Vectors(dim, num_heads, qk_gain) for _ in range(places - num_layers)
        )


def _stream(tensor: Tensor, generator: object) -> None:
    tensor[0].fill_(1.0)
    tensor[1].fill_(0.0)

"""Exclusive self-attention (XSA): what a head returns without its component along the position's own value."""

import torch
from torch import Tensor, nn

from pgolf.model.roles import Part, constant


def exclude_value(y: Tensor, v: Tensor, strength: Tensor | None = None) -> Tensor:
    """Remove from each head's output its component along the same position's value vector, or `strength` of it.

    y [B, T, H, d], v [B, T, G, d], strength [H] -> [B, T, H, d]. The norm of v is taken as at least 1e-12.
    """
    groups = v.shape[2]
    grouped, v = y.unflatten(2, (groups, -1)), v[:, :, :, None]
    share = torch.linalg.vecdot(grouped, v) / torch.linalg.vecdot(v, v).clamp_min(1e-24)
    if strength is not None:
        share = share * strength.to(share.dtype).unflatten(0, (groups, -1))
    return torch.addcmul(grouped, share[..., None], v, value=-1.0).flatten(2, 3)


class OwnValue(nn.Module):
    """Excludes the whole component."""

    def forward(self, y: Tensor, v: Tensor) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]."""
        return exclude_value(y, v)


class GatedOwnValue(Part):
    """Excludes tanh(alpha) of the component, alpha per head from 0: at first nothing is excluded (PR 2018)."""

    xsa_alpha: nn.Parameter

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.declare("xsa_alpha", (num_heads,), "scalar", constant(0.0))

    def forward(self, y: Tensor, v: Tensor) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]."""
        return exclude_value(y, v, torch.tanh(self.xsa_alpha))


def own_value(num_heads: int, layer: int, num_layers: int, *, last: int | None) -> OwnValue | None:
    """XSA in the last `last` blocks (2026-03-20), in all of them for None (2026-03-25 and after)."""
    return OwnValue() if _chosen(layer, num_layers, last) else None


def gated_own_value(num_heads: int, layer: int, num_layers: int, *, last: int | None) -> GatedOwnValue | None:
    """Gated XSA in the last `last` blocks, in all of them for None."""
    return GatedOwnValue(num_heads) if _chosen(layer, num_layers, last) else None


def _chosen(layer: int, num_layers: int, last: int | None) -> bool:
    if last is not None and last < 1:
        raise ValueError(f"exclude.last={last} must be at least 1; attention/exclude=none is without the part")
    return last is None or layer >= num_layers - last

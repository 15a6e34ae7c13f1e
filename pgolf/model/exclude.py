"""Exclusive self-attention (XSA): what a head returns without its component along the position's own value."""

import torch
from torch import Tensor, nn

from pgolf.model.context import Walk
from pgolf.model.roles import Part, constant

NEARLY_ALONG = 1e-3
"""Part of a value's square that must be new for all of it to count: below, what is left of it is mostly rounding."""


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

    def forward(self, y: Tensor, v: Tensor, walk: Walk | None = None) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]; the walk is not read."""
        return exclude_value(y, v)


class GatedOwnValue(Part):
    """Excludes tanh(alpha) of the component, alpha per head from 0: at first nothing is excluded (PR 2018)."""

    xsa_alpha: nn.Parameter

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.declare("xsa_alpha", (num_heads,), "scalar", constant(0.0))

    def forward(self, y: Tensor, v: Tensor, walk: Walk | None = None) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]; the walk is not read."""
        return exclude_value(y, v, torch.tanh(self.xsa_alpha))


class AdaptiveOwnValue(Part):
    """Excludes sigmoid(s) of the component, s one scalar for the layer: y (1 - sigmoid(s)) + xsa(y) sigmoid(s)
    (johnlennyt5's notes on the records). s starts at `init`."""

    xsa_strength: nn.Parameter

    def __init__(self, init: float) -> None:
        super().__init__()
        self.declare("xsa_strength", (1,), "scalar", constant(init))

    def forward(self, y: Tensor, v: Tensor, walk: Walk | None = None) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]; the walk is not read."""
        return exclude_value(y, v, torch.sigmoid(self.xsa_strength).expand(y.shape[2]))


class ValuesOfAllPasses(nn.Module):
    """On visit k of a block excludes the components along its value of that visit and of all visits before, v_k, v_0,
    ... v_{k-1}: the projection on their span. An idea of the recurrence studies that none of them built.

    By Gram-Schmidt in fp32: u_j is v_j without its components along v_k and u_0 .. u_{j-1}, and y loses
    u_j <y, u_j> / max(|u_j|^2, 0.001 |v_j|^2). The floor leaves y alone where a value is nothing new, as at the start
    of training, when all visits have nearly the same. layer: whose visits they are. A first visit is plain XSA.
    """

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.name = f"values of block {layer}"

    def forward(self, y: Tensor, v: Tensor, walk: Walk | None = None) -> Tensor:
        """y [B, T, H, d], v [B, T, G, d] -> [B, T, H, d]. ValueError without the walk that remembers."""
        if walk is None:
            raise ValueError("XSA over all passes needs context.walk: begin one (Context.begun) around the attention")
        visit = sum(name == self.name for name, _ in walk.kept)
        walk.kept[self.name, visit] = v
        out = exclude_value(y, v)
        with torch.autocast(y.device.type, enabled=False):  # which would round the products
            axes = [(v.float(), torch.linalg.vecdot(v.float(), v.float()))]
            for earlier in range(visit):
                value = axis = walk.kept[self.name, earlier].float()
                for direction, square in axes:
                    axis = _without(axis, direction, square)
                floor = NEARLY_ALONG * torch.linalg.vecdot(value, value)
                axes.append((axis, torch.maximum(torch.linalg.vecdot(axis, axis), floor)))
                out = _without(out.float(), *axes[-1]).to(y.dtype)
        return out


def _without(y: Tensor, axis: Tensor, square: Tensor) -> Tensor:
    """y [B, T, H, d] less axis [B, T, G, d] times <y, axis> / square, square [B, T, G]."""
    groups = axis.shape[2]
    grouped, axis = y.unflatten(2, (groups, -1)), axis[:, :, :, None]
    share = torch.linalg.vecdot(grouped, axis) / square.clamp_min(1e-24)[..., None]
    return torch.addcmul(grouped, share[..., None], axis, value=-1.0).flatten(2, 3)


def own_value(num_heads: int, layer: int, num_layers: int, *, last: int | None) -> OwnValue | None:
    """XSA in the last `last` blocks (2026-03-20), in all of them for None (2026-03-25 and after)."""
    return OwnValue() if _chosen(layer, num_layers, last) else None


def gated_own_value(num_heads: int, layer: int, num_layers: int, *, last: int | None) -> GatedOwnValue | None:
    """Gated XSA in the last `last` blocks, in all of them for None."""
    return GatedOwnValue(num_heads) if _chosen(layer, num_layers, last) else None


def adaptive_own_value(
    num_heads: int, layer: int, num_layers: int, *, last: int | None, init: float
) -> nn.Module | None:
    """XSA of learned strength in the last `last` blocks, in all of them for None."""
    return AdaptiveOwnValue(init) if _chosen(layer, num_layers, last) else None


def values_of_all_passes(num_heads: int, layer: int, num_layers: int, *, last: int | None) -> nn.Module | None:
    """XSA over all passes in the last `last` blocks, in all of them for None."""
    return ValuesOfAllPasses(layer) if _chosen(layer, num_layers, last) else None


def _chosen(layer: int, num_layers: int, last: int | None) -> bool:
    if last is not None and last < 1:
        raise ValueError(f"exclude.last={last} must be at least 1; attention/exclude=none is without the part")
    return last is None or layer >= num_layers - last

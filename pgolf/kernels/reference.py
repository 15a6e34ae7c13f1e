"""Causal attention written out, the judge of every back end. It builds a T x T mask: for small cases only."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.kernels.packing import Packing

Attention = Callable[[Tensor, Tensor, Tensor, Packing | None], Tensor]


def reference(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over earlier tokens of the same document, computed in fp32 (fp64 stays fp64).

    q [B, T, H, d], k and v [B, T, G, d]; query head h reads key/value head h // (H / G). Returns [B, T, H, d] in q's
    dtype.
    """
    tokens, heads, head_dim = q.shape[1:]
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (x.to(wide).repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    visible = torch.ones(tokens, tokens, dtype=torch.bool, device=q.device).tril()
    if packing is not None:
        documents = packing.document_ids(tokens)
        visible &= documents[:, None] == documents[None, :]
    scores = torch.einsum("bihd,bjhd->bhij", q.to(wide), k) * head_dim**-0.5
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v).to(q.dtype)

"""Flex attention with a block mask computed from document numbers, without looking at T x T pairs."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pgolf.kernels.autocast import autocast
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import Attention

if TYPE_CHECKING:  # the module takes a while to import
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # tokens to a side of a block, the size that torch's kernels are tuned for


def flex() -> Attention:
    """Compiled flex attention: outside a compiled function, torch would build every score.

    torch raises NotImplementedError for CPU tensors that want a gradient.
    """

    def attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
        q, k, v = autocast(q, k, v)
        from torch.nn.attention.flex_attention import flex_attention

        function: Any = flex_attention if torch.compiler.is_compiling() else _compiled()
        mask = block_mask(q, packing)
        grouped = q.shape[2] != k.shape[2]
        out = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), block_mask=mask, enable_gqa=grouped)
        return out.transpose(1, 2)

    return attention


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def block_mask(q: Tensor, packing: Packing | None) -> "BlockMask":
    """Which blocks of BLOCK x BLOCK pairs hold visible pairs, for q [B, T, H, d].

    Document numbers never decrease, so the first and the last number of two blocks say whether they share a
    document (part of the pairs is visible) and whether they are one document (all are, below the diagonal).
    """
    from torch.nn.attention.flex_attention import BlockMask

    tokens = q.shape[1]
    documents = (
        packing.document_ids(tokens) if packing is not None else torch.zeros(tokens, dtype=torch.int32, device=q.device)
    )
    starts = torch.arange(0, tokens, BLOCK, device=q.device)
    first, last = documents[starts], documents[(starts + BLOCK - 1).clamp_max(tokens - 1)]
    earlier = starts[None, :] < starts[:, None]  # [query block, key block]
    whole = earlier & (first[None, :] == last[:, None])
    partly = (earlier & (last[None, :] >= first[:, None]) & ~whole) | (starts[None, :] == starts[:, None])

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[query] == documents[key])

    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(whole), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """bool [n, n] -> how many key blocks each query block reads, int32 [1, 1, n], and which, first in [1, 1, n, n]."""
    order = blocks.to(torch.int32).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]

"""Causal attention whose probabilities are alpha-entmax instead of a softmax (Correia, Niculae, Martins 2019, arXiv
1909.00015), in plain torch on every device: the published attempt had a kernel that aborted.

One opaque operation, `pgolf::entmax_attention`, walks a packed row document by document and a document by blocks of
queries; its backward makes the probabilities of a block again from the normalisers that the forward kept, one number a
query and head, as FlashAttention does with its sums (arXiv 2307.08691). So no more than BLOCK scores are there at once,
and compiled graphs have no break.

Costs, beside a softmax: products are those of attention written out, in fp32 whatever the autocast, with blocks of
scores written to memory and read again some ten times; a sort of every query's scores for alpha = 1.5 and 2, and
fourteen passes over them with a power each for any other alpha but 1. On one core, forward and backward of 1,024 tokens
in four heads of 64 took 4 times as long as torch's own attention with alpha = 2, 7 times with 1.5, and 13 times with
1.25; the library's kernels on a GPU should be further ahead. Zero probabilities are multiplied like others. There is no
second derivative.
"""

from collections.abc import Iterator
from typing import Optional

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pgolf.kernels.autocast import autocast
from pgolf.kernels.documents import document_lengths
from pgolf.kernels.entmax import exponential, gradient, normaliser
from pgolf.kernels.packing import Packing

BLOCK = 2**22  # scores that are there at once, of all rows and heads: 16 MiB in fp32, and some ten tensors of that size


def entmax_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, alpha: Tensor) -> Tensor:
    """entmax(q k^T / sqrt(d)) v over earlier tokens of the same document: q [B, T, H, d], k and v [B, T, G, d] ->
    [B, T, H, d]. alpha: one number in [1, 2], a tensor, so that a graph need not be compiled again where it changes; in
    main memory nothing waits for it.

    Raises ValueError for another alpha, and when the packing describes a row of another length.
    """
    boundaries = None if packing is None else packing.boundaries
    out, _ = torch.ops.pgolf.entmax_attention(*autocast(q, k, v), boundaries, alpha)
    return out


@torch.library.custom_op("pgolf::entmax_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Optional[Tensor],  # noqa: UP045 (what torch reads here)
    alpha: Tensor,
) -> tuple[Tensor, Tensor]:
    """The output, and the normalisers [B, H, T] in fp32 or wider."""
    number, lengths = float(alpha), _lengths(q, boundaries)
    rows = zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)
    pieces = [_document(queries, keys, values, number) for queries, keys, values in rows]
    outs, normalisers = zip(*pieces, strict=True)
    return torch.cat(outs, dim=1), torch.cat(normalisers, dim=2)


@torch.library.custom_op("pgolf::entmax_attention_backward", mutates_args=())
def _backward(
    slope: Tensor,
    normalisers: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Optional[Tensor],  # noqa: UP045
    alpha: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v."""
    number, lengths = float(alpha), _lengths(q, boundaries)
    rows = zip(*(x.split(lengths, 1) for x in (slope, q, k, v)), normalisers.split(lengths, 2), strict=True)
    found = [_document_backward(grad, queries, keys, values, c, number) for grad, queries, keys, values, c in rows]
    dq, dk, dv = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return dq, dk, dv


def _lengths(q: Tensor, boundaries: Tensor | None) -> list[int]:
    return [q.shape[1]] if boundaries is None else document_lengths(q, boundaries)


def _document(q: Tensor, k: Tensor, v: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """One document of every row: q [B, L, H, d], k, v [B, L, G, d] -> [B, L, H, d] and [B, H, L]."""
    q_, k_, v_ = (_by_group(x, k.shape[2]) for x in (q, k, v))
    outs, normalisers = [], []
    for rows in _blocks(q):
        scores = _scores(q_, k_, rows)
        c = normaliser(scores, alpha)
        outs.append(exponential(scores - c, alpha) @ v_[..., : rows.stop, :])
        normalisers.append(c.squeeze(-1))
    out = torch.cat(outs, dim=3).flatten(1, 2).transpose(1, 2).to(q.dtype)
    return out.contiguous(), torch.cat(normalisers, dim=3).flatten(1, 2)


def _document_backward(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, normalisers: Tensor, alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """With P = entmax(S): dV = P^T dO, dS = `gradient` of dO V^T, dQ = dS K, dK = dS^T Q, the last two over sqrt(d)."""
    groups = k.shape[2]
    slope, q_, k_, v_ = (_by_group(x, groups) for x in (slope, q, k, v))
    c = normalisers.unflatten(1, (groups, -1))[..., None]
    dq, dk, dv = (torch.zeros_like(x) for x in (q_, k_, v_))
    for rows in _blocks(q):
        keys, values, block = k_[..., : rows.stop, :], v_[..., : rows.stop, :], slope[..., rows, :]
        p = exponential(_scores(q_, k_, rows) - c[..., rows, :], alpha)
        dv[..., : rows.stop, :] += (p.mT @ block).sum(2, keepdim=True)
        dscores = gradient(p, block @ values.mT, alpha) * q.shape[-1] ** -0.5
        dq[..., rows, :] = dscores @ keys
        dk[..., : rows.stop, :] += (dscores.mT @ q_[..., rows, :]).sum(2, keepdim=True)
    first, second, third = (x.flatten(1, 2).transpose(1, 2).to(q.dtype).contiguous() for x in (dq, dk, dv))
    return first, second, third


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, L, H or G, d] -> [B, G, H / G or 1, L, d] in fp32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide).unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)


def _blocks(q: Tensor) -> Iterator[slice]:
    """Queries of one block after the other, of q [B, L, H, d]."""
    batch, length, heads, _ = q.shape
    count = max(1, BLOCK // (batch * heads * length))
    return (slice(start, min(start + count, length)) for start in range(0, length, count))


def _scores(q: Tensor, k: Tensor, rows: slice) -> Tensor:
    """[B, G, H / G, rows, rows.stop], minus infinity where a key is later than its query."""
    scores = q[..., rows, :] @ k[..., : rows.stop, :].mT * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(rows.start + 1)
    return scores.masked_fill_(future, float("-inf"))


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor | None, alpha: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=wide)


@_backward.register_fake
def _(
    slope: Tensor, normalisers: Tensor, q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor | None, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: FunctionCtx, slope: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, normalisers = ctx.saved_tensors  # type: ignore[attr-defined]
    return *torch.ops.pgolf.entmax_attention_backward(slope, normalisers, *inputs), None, None


_forward.register_autograd(_gradients, setup_context=_keep)

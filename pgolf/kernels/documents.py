"""sdpa: attention with torch's own scaled_dot_product_attention, on every device; a packed row document by document.

No mask over the row is ever built. Inside torch.compile the walk over the documents is one opaque operation,
`pgolf::attend_documents`, because its number of steps is data: the graph has no break and is not compiled again
when documents end elsewhere.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from pgolf.kernels.autocast import autocast
from pgolf.kernels.packing import Packing

BACKWARD_ROWS = 256  # queries that the compiled backward handles at once: its scores take [H, 256, T] values


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of whole rows: q [B, T, H, d], k and v [B, T, G, d] -> [B, T, H, d]."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )
    return out.transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, packing: Packing | None) -> Tensor:
    """The back end that works everywhere: q [B, T, H, d], k and v [B, T, G, d] -> [B, T, H, d].

    Raises ValueError when the packing describes a row of another length.
    """
    if packing is None:
        return dense(q, k, v)
    if torch.compiler.is_compiling():
        return torch.ops.pgolf.attend_documents(*autocast(q, k, v), packing.boundaries)
    return _document_by_document(q, k, v, packing.boundaries)


def _document_by_document(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor) -> Tensor:
    lengths = document_lengths(q, boundaries)
    if len(lengths) == 1:
        return dense(q, k, v)
    # split, not slices: the gradient of a slice is a zero-filled tensor as long as the row, once per document
    pieces = zip(*(x.split(lengths, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([dense(*piece) for piece in pieces], dim=1)


def document_lengths(q: Tensor, boundaries: Tensor) -> list[int]:
    """Tokens of each document of the packed row q [1, T, ...], empty ones left out. ValueError when the boundaries are
    those of a row of another length, or q has several rows."""
    ends: list[int] = boundaries.tolist()
    if q.shape[0] != 1 or ends[-1] != q.shape[1]:
        raise ValueError(f"the packing describes one row of {ends[-1]} tokens, q has the shape {tuple(q.shape)}")
    return [end - start for start, end in itertools.pairwise(ends) if end > start]


@torch.library.custom_op("pgolf::attend_documents", mutates_args=())
def _attend_documents(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor) -> Tensor:
    return _document_by_document(q, k, v, boundaries).contiguous()


@torch.library.custom_op("pgolf::attend_documents_backward", mutates_args=())
def _attend_documents_backward(
    grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v. Autograd does not reach inside an operation, so the formulas are written out."""
    lengths = document_lengths(q, boundaries)
    pieces = zip(*(x[0].split(lengths) for x in (grad, out, q, k, v)), strict=True)
    gradients = zip(*(_document_backward(*piece) for piece in pieces), strict=True)
    dq, dk, dv = (torch.cat(parts)[None] for parts in gradients)
    return dq, dk, dv


def _document_backward(grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One document, a block of queries at a time. grad, out, q [L, H, d], k, v [L, G, d].

    With P = softmax(S), S = q k^T / sqrt(d): dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O)) / sqrt(d), dQ = dS K,
    dK = dS^T Q (FlashAttention-2, arXiv 2307.08691, section 3.2), accumulated in fp32.
    """
    groups, scale, wide = k.shape[1], q.shape[-1] ** -0.5, torch.promote_types(q.dtype, torch.float32)
    # [G, H / G, L, d] for what has query heads, [G, 1, L, d] for keys and values
    grad, out, q_, k_, v_ = (x.to(wide).unflatten(1, (groups, -1)).movedim(0, 2) for x in (grad, out, q, k, v))
    dq, dk, dv = (torch.zeros_like(x) for x in (q_, k_, v_))
    for start in range(0, len(q), BACKWARD_ROWS):
        rows = slice(start, min(start + BACKWARD_ROWS, len(q)))
        keys, values, slope = k_[:, :, : rows.stop], v_[:, :, : rows.stop], grad[:, :, rows]
        scores = q_[:, :, rows] @ keys.mT * scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(start + 1)
        weights = scores.masked_fill_(future, float("-inf")).softmax(dim=-1)
        dv[:, :, : rows.stop] += (weights.mT @ slope).sum(1, keepdim=True)
        centred = slope @ values.mT - (slope * out[:, :, rows]).sum(-1, keepdim=True)
        dscores = weights * centred * scale
        dq[:, :, rows] = dscores @ keys
        dk[:, :, : rows.stop] += (dscores.mT @ q_[:, :, rows]).sum(1, keepdim=True)
    first, second, third = (x.movedim(2, 0).flatten(1, 2).to(q.dtype) for x in (dq, dk, dv))
    return first, second, third


@_attend_documents.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@_attend_documents_backward.register_fake
def _(grad: Tensor, out: Tensor, q: Tensor, k: Tensor, v: Tensor, boundaries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _gradients(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    q, k, v, boundaries, out = ctx.saved_tensors  # type: ignore[attr-defined]
    return *torch.ops.pgolf.attend_documents_backward(grad, out, q, k, v, boundaries), None


_attend_documents.register_autograd(_gradients, setup_context=_keep)

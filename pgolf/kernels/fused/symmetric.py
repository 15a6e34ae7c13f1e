"""scale X X^T + beta B for a batch of matrices and symmetric B: the products of Newton-Schulz iterations.

The result is symmetric, so only the tiles on and above its diagonal are computed and each is written twice, which is
half of the work. With X = B = A symmetric it is beta A + scale A^2. Source: the symmetric products of the NanoGPT
speedrun's Muon.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.fused.launch import Tiles, precision_of_products, tiles, wide


def reference(x: Tensor, base: Tensor | None = None, beta: float = 0.0, scale: float = 1.0) -> Tensor:
    """x [n, rows, cols], base [n, rows, rows] symmetric -> scale x x^T + beta base, [n, rows, rows]."""
    product = x @ x.mT
    return scale * product if base is None else torch.add(beta * base, product, alpha=scale)


def fused(x: Tensor, base: Tensor | None = None, beta: float = 0.0, scale: float = 1.0) -> Tensor:
    """As `reference`, rounded once."""
    return forward(x, base, beta, scale)


def example(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    """A small case: tensors with gradients, and the other arguments."""
    x, base = torch.randn(2, 40, 50, generator=generator) / 7.0, torch.randn(2, 40, 40, generator=generator)
    return [x.to(device, dtype), (base + base.mT).to(device, dtype)], [0.5, -2.0]


@torch.library.custom_op("pgolf::symmetric", mutates_args=())
def forward(x: Tensor, base: Tensor | None, beta: float, scale: float) -> Tensor:
    """x [n, rows, cols], base [n, rows, rows] symmetric or None -> [n, rows, rows]."""
    count, rows, columns = x.shape
    out = x.new_empty(count, rows, rows)
    tile = _square(tiles(x))
    across = triton.cdiv(rows, tile.m)
    if out.numel():
        _kernel[(across * across, count)](
            *(x.contiguous(), out if base is None else base.contiguous(), out, rows, columns, beta, scale),
            BASE=base is not None,
            SUM=wide(x.dtype),
            PRECISION=precision_of_products(x.dtype),
            EVEN=columns % tile.k == 0,
            BLOCK=tile.m,
            BLOCK_K=tile.k,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out


@forward.register_fake
def _(x: Tensor, base: Tensor | None, beta: float, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.beta, ctx.scale = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    (x,) = ctx.saved_tensors
    for_x, for_base, _, _ = ctx.needs_input_grad
    return (
        ctx.scale * ((gradient + gradient.mT) @ x) if for_x else None,
        ctx.beta * gradient if for_base else None,
        None,
        None,
    )


forward.register_autograd(_backward, setup_context=_keep)


def _square(tile: Tiles) -> Tiles:
    """Tiles as high as they are wide: those below the diagonal are mirrored."""
    return tile._replace(n=tile.m)


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    base,
    out,
    rows,
    columns,
    beta,
    scale,
    BASE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    across = tl.cdiv(rows, BLOCK)
    down, right = tl.program_id(0) // across, tl.program_id(0) % across
    if right >= down:
        matrix = tl.program_id(1).to(tl.int64)
        row = down * BLOCK + tl.arange(0, BLOCK)
        column = right * BLOCK + tl.arange(0, BLOCK)
        k = tl.arange(0, BLOCK_K)
        x += matrix * rows * columns
        a_at = x + (row % rows).to(tl.int64)[:, None] * columns + k[None, :]
        b_at = x + (column % rows).to(tl.int64)[None, :] * columns + k[:, None]
        total = tl.zeros((BLOCK, BLOCK), dtype=SUM)
        for start in range(0, columns, BLOCK_K):
            if EVEN:
                a, b = tl.load(a_at), tl.load(b_at)
            else:
                a = tl.load(a_at, mask=(k < columns - start)[None, :], other=0.0)
                b = tl.load(b_at, mask=(k < columns - start)[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=SUM)
            a_at += BLOCK_K
            b_at += BLOCK_K
        total *= scale
        inside = (row < rows)[:, None] & (column < rows)[None, :]
        at = row.to(tl.int64)[:, None] * rows + column[None, :]
        if BASE:
            total += beta * tl.load(base + matrix * rows * rows + at, mask=inside, other=0.0).to(SUM)
        out += matrix * rows * rows
        rounded = total.to(out.dtype.element_ty)
        mirrored = column.to(tl.int64)[:, None] * rows + row[None, :]
        within = (column < rows)[:, None] & (row < rows)[None, :]
        if right == down:  # by halves, so that no rounding of a sum can make it unsymmetric
            tl.store(out + at, rounded, mask=inside & (row[:, None] <= column[None, :]))
            tl.store(out + mirrored, tl.trans(rounded), mask=within & (column[:, None] > row[None, :]))
        else:  # masks that change along a row would allow no wide stores
            tl.store(out + at, rounded, mask=inside)
            tl.store(out + mirrored, tl.trans(rounded), mask=within)

"""Up-projection, LeakyReLU^2 and down-projection of an MLP, with the activation inside the matrix products.

Source: the fused MLP of the published records (PR 1667 and after). Forward: one kernel computes h = x up^T tile by
tile and writes h and p = leaky_relu(h)^2 of the rounded h; out = p down^T is left to the library. Backward: one kernel
computes dp = dout down and writes dh = dp f'(h), f'(h) = 2 h above zero and 2 slope^2 h below; the products
dup = dh^T x, ddown = dout^T p and dx = dh up are left to the library.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.autocast import autocast
from pgolf.kernels.fused.launch import precision_of_products, tiles, wide

GROUP = 8  # rows of tiles that share the columns they read, while these are in the cache


def reference(x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """leaky_relu(x up^T, slope)^2 down^T: x [..., dim], up [hidden, dim], down [dim, hidden] -> [..., dim]."""
    return F.linear(F.leaky_relu(F.linear(x, up), slope).square(), down)


def fused(x: Tensor, up: Tensor, down: Tensor, slope: float) -> Tensor:
    """As `reference`, in the dtype that autocast asks for, else in that of x."""
    x, up, down = autocast(x, up, down)
    out, _, _ = forward(x.flatten(0, -2), up.to(x.dtype), down.to(x.dtype), slope)
    return out.unflatten(0, x.shape[:-1])


def example(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    """A small case: tensors with gradients, and the other arguments."""
    shapes = ((2, 20, 24), (40, 24), (24, 40))
    return [torch.randn(shape, generator=generator).to(device, dtype) / 7.0 for shape in shapes], [0.5]


@torch.library.custom_op("pgolf::mlp", mutates_args=())
def forward(x: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """x [m, dim], up [hidden, dim], down [dim, hidden] of one dtype -> out [m, dim], h and p [m, hidden], which have no
    gradients."""
    h = x.new_empty(x.shape[0], up.shape[0])
    p = torch.empty_like(h)
    _launch(_up_kernel, x.contiguous(), up.contiguous(), (h, p), up.shape[0], slope)
    return p @ down.T, h, p


@torch.library.custom_op("pgolf::mlp_slopes", mutates_args=())
def slopes(gradient: Tensor, down: Tensor, h: Tensor, slope: float) -> Tensor:
    """gradient [m, dim] of the output, h [m, hidden] -> the gradient of h."""
    result = torch.empty_like(h)
    _launch(_slopes_kernel, gradient.contiguous(), down.contiguous(), (h, result), h.shape[1], slope)
    return result


@forward.register_fake
def _(x: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    h = x.new_empty(x.shape[0], up.shape[0])
    return x.new_empty(x.shape[0], down.shape[0]), h, torch.empty_like(h)


@slopes.register_fake
def _(gradient: Tensor, down: Tensor, h: Tensor, slope: float) -> Tensor:
    return torch.empty_like(h)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, up, down, ctx.slope = inputs
    _, h, p = output
    ctx.mark_non_differentiable(h, p)
    ctx.set_materialize_grads(False)  # else autograd fills two tensors of zeros as large as h and p
    ctx.save_for_backward(x, up, down, h, p)


def _backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return None, None, None, None
    x, up, down, h, p = ctx.saved_tensors
    for_x, for_up, for_down, _ = ctx.needs_input_grad
    dh = slopes(gradient, down, h, ctx.slope) if for_x or for_up else None
    return (
        dh @ up if dh is not None and for_x else None,
        dh.T @ x if dh is not None and for_up else None,
        gradient.T @ p if for_down else None,
        None,
    )


forward.register_autograd(_backward, setup_context=_keep)


def _launch(kernel: Any, a: Tensor, b: Tensor, rest: tuple[Tensor, Tensor], columns: int, slope: float) -> None:
    """Run a kernel over the tiles of [rows of a, columns]."""
    rows, inner = a.shape
    if not rows:
        return
    tile = tiles(a)
    grid = (triton.cdiv(rows, tile.m) * triton.cdiv(columns, tile.n),)
    kernel[grid](
        *(a, b, *rest, rows, columns, inner),
        SLOPE=slope,
        SUM=wide(a.dtype),
        PRECISION=precision_of_products(a.dtype),
        EVEN=inner % tile.k == 0,
        GROUP=GROUP,
        BLOCK_M=tile.m,
        BLOCK_N=tile.n,
        BLOCK_K=tile.k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit
def _place(rows, columns, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows and columns of the tile of this program; tiles that read the same columns run at the same time."""
    program = tl.program_id(0)
    down, across = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    band = program // (GROUP * across)
    height = tl.minimum(down - band * GROUP, GROUP)
    within = program % (GROUP * across)
    row = (band * GROUP + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    return row, column


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    a,
    b,
    row,
    column,
    rows,
    columns,
    inner,
    b_column,
    b_inner,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The tile of a [rows, inner] times b, whose element (k, n) lies at k b_inner + n b_column, summed in SUM.

    Rows and columns beyond the edge are read again from the start: they are not written.
    """
    k = tl.arange(0, BLOCK_K)
    a_at = a + (row % rows).to(tl.int64)[:, None] * inner + k[None, :]
    b_at = b + k[:, None] * b_inner + (column % columns).to(tl.int64)[None, :] * b_column
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=SUM)
    for start in range(0, inner, BLOCK_K):
        if EVEN:
            left, right = tl.load(a_at), tl.load(b_at)
        else:
            left = tl.load(a_at, mask=(k < inner - start)[None, :], other=0.0)
            right = tl.load(b_at, mask=(k < inner - start)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=SUM)
        a_at += BLOCK_K
        b_at += BLOCK_K * b_inner
    return total


@triton.jit
def _up_kernel(  # type: ignore[no-untyped-def]
    x,
    up,
    h,
    p,
    rows,
    columns,
    inner,
    SLOPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h = x up^T rounded, p = leaky_relu(h)^2 rounded as by the plain operations."""
    row, column = _place(rows, columns, GROUP, BLOCK_M, BLOCK_N)
    total = _product(
        x, up, row, column, rows, columns, inner, inner, 1, SUM, PRECISION, EVEN, BLOCK_M, BLOCK_N, BLOCK_K
    )
    kept = total.to(h.dtype.element_ty)
    bent = tl.where(kept > 0, kept.to(SUM), kept.to(SUM) * SLOPE).to(h.dtype.element_ty).to(SUM)
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(h + at, kept, mask=inside)
    tl.store(p + at, (bent * bent).to(p.dtype.element_ty), mask=inside)


@triton.jit
def _slopes_kernel(  # type: ignore[no-untyped-def]
    gradient,
    down,
    h,
    result,
    rows,
    columns,
    inner,
    SLOPE: tl.constexpr,
    SUM: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """result = round(gradient down) f'(h)."""
    row, column = _place(rows, columns, GROUP, BLOCK_M, BLOCK_N)
    total = _product(
        gradient, down, row, column, rows, columns, inner, 1, columns, SUM, PRECISION, EVEN, BLOCK_M, BLOCK_N, BLOCK_K
    )
    at = row.to(tl.int64)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    kept = tl.load(h + at, mask=inside, other=0.0).to(SUM)
    slope = tl.where(kept > 0, 2.0 * kept, 2.0 * SLOPE * SLOPE * kept)
    rounded = total.to(result.dtype.element_ty).to(SUM)
    tl.store(result + at, (rounded * slope).to(result.dtype.element_ty), mask=inside)

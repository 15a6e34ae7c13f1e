"""RMSNorm of each head, rotary embedding and gain, of queries or keys, read and written once.

y = gain_h R_t x / rms(x), with R_t as pgolf.model.rope rotates: pairs (j, j + dims/2) by the angle of position t, the
dimensions from `dims` on left alone. Everything is computed in fp32 and rounded once, where the plain operations round
after each. In the backward x / rms(x) is computed again; the gain's gradient is summed over rows outside the kernel, so
that it is the same each time.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.fused.launch import wide

EPSILON = 1.1920928955078125e-07  # that of pgolf.model.norm
ELEMENTS = 4096  # of x in a program


def reference(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    """x [B, T, heads, d], cos and sin [T, dims / 2], gain [heads] -> [B, T, heads, d] in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    half, wider = cos.shape[1], x.to(dtype)
    normed = wider * (wider.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    first, second, rest = normed[..., :half], normed[..., half : 2 * half], normed[..., 2 * half :]
    cos, sin = cos[:, None].to(dtype), sin[:, None].to(dtype)
    turned = torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)
    return (turned if gain is None else turned * gain[:, None].to(dtype)).to(x.dtype)


def fused(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    """As `reference`."""
    return forward(x, cos, sin, gain)


def example(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    """A small case: tensors with gradients, and the other arguments."""
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.3, 0.1]))
    x = torch.randn(2, 5, 3, 20, generator=generator)
    return [x.to(device, dtype)], [angles.cos().to(device), angles.sin().to(device), torch.arange(3.0).to(device) + 2.0]


@torch.library.custom_op("pgolf::norm_rotary", mutates_args=())
def forward(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    """x [B, T, heads, d], cos and sin [T, dims / 2], gain [heads] or None -> [B, T, heads, d]."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(_forward_kernel, x, cos, sin, gain, (out,))
    return out


@torch.library.custom_op("pgolf::norm_rotary_backward", mutates_args=())
def backward(gradient: Tensor, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of x, and that of the gain before it is summed: fp32 [B, T, heads], of no meaning without gain."""
    result, parts = _gradients(x)
    _launch(_backward_kernel, x, cos, sin, gain, (gradient.contiguous(), result, parts))
    return result, parts


@forward.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@backward.register_fake
def _(gradient: Tensor, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    return _gradients(x)


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    parts = x.new_empty(x.shape[:3], dtype=torch.promote_types(x.dtype, torch.float32))
    return torch.empty_like(x, memory_format=torch.contiguous_format), parts


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor | None]:
    x, cos, sin, gain = ctx.saved_tensors
    result, parts = backward(gradient, x, cos, sin, gain)
    return result, None, None, None if gain is None else parts.sum((0, 1)).to(gain.dtype)


forward.register_autograd(_backward, setup_context=_keep)


def _launch(kernel: Any, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, rest: tuple[Tensor, ...]) -> None:
    """Run a kernel over heads of tokens, as many at a time as ELEMENTS hold."""
    width, rows = x.shape[3], x.numel() // x.shape[3]
    block = triton.next_power_of_2(width)
    together = max(1, ELEMENTS // block)
    if rows:
        kernel[(triton.cdiv(rows, together),)](
            *(x.contiguous(), cos.contiguous(), sin.contiguous(), cos if gain is None else gain.contiguous(), *rest),
            *(rows, x.shape[1], x.shape[2]),
            WIDTH=width,
            HALF=cos.shape[1],
            GAIN=gain is not None,
            EPS=EPSILON,
            SUM=wide(x.dtype),
            BLOCK_R=together,
            BLOCK_D=block,
            num_warps=4,
        )


@triton.jit
def _places(rows, tokens, heads, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program's rows: which they are, which columns, where both lie, where each column's partner lies, where
    its angle does."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)  # divided in 32 bits: in 64 that costs as much as the rest
    column = tl.arange(0, BLOCK_D)
    partner = tl.where(column < HALF, column + HALF, tl.where(column < 2 * HALF, column - HALF, column))
    angle = ((row // heads) % tokens)[:, None] * HALF + (column % HALF)[None, :]
    begin = row.to(tl.int64)[:, None] * WIDTH
    return row, column, begin + column[None, :], begin + partner[None, :], angle


@triton.jit
def _turns(cos, sin, angle, inside, column, HALF: tl.constexpr, SUM: tl.constexpr):  # type: ignore[no-untyped-def]
    """What a column and its partner are multiplied by to be rotated."""
    turned = inside & (column < 2 * HALF)[None, :]
    own = tl.load(cos + angle, mask=turned, other=1.0).to(SUM)
    others = tl.load(sin + angle, mask=turned, other=0.0).to(SUM)
    return own, tl.where((column < HALF)[None, :], others, -others)


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    gain,
    out,
    rows,
    tokens,
    heads,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, column, at, partner_at, angle = _places(rows, tokens, heads, WIDTH, HALF, BLOCK_R, BLOCK_D)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(SUM)
    partner = tl.load(x + partner_at, mask=inside, other=0.0).to(SUM)
    own, others = _turns(cos, sin, angle, inside, column, HALF, SUM)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 1) / WIDTH + EPS)
    if GAIN:
        factor *= tl.load(gain + row % heads).to(SUM)
    turned = (value * own + partner * others) * factor[:, None]
    tl.store(out + at, turned.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    x,
    cos,
    sin,
    gain,
    gradient,
    result,
    parts,
    rows,
    tokens,
    heads,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    GAIN: tl.constexpr,
    EPS: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, column, at, partner_at, angle = _places(rows, tokens, heads, WIDTH, HALF, BLOCK_R, BLOCK_D)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    own, others = _turns(cos, sin, angle, inside, column, HALF, SUM)
    slope = tl.load(gradient + at, mask=inside, other=0.0).to(SUM)
    partner = tl.load(gradient + partner_at, mask=inside, other=0.0).to(SUM)
    slope = slope * own - partner * others  # turned back
    value = tl.load(x + at, mask=inside, other=0.0).to(SUM)
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, 1) / WIDTH + EPS)
    normed = value * inverse[:, None]
    along = tl.sum(slope * normed, 1)
    factor = inverse
    if GAIN:
        tl.store(parts + row, along, mask=row < rows)
        factor *= tl.load(gain + row % heads).to(SUM)
    slope = (slope - normed * (along / WIDTH)[:, None]) * factor[:, None]
    tl.store(result + at, slope.to(result.dtype.element_ty), mask=inside)

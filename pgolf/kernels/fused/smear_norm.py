"""The smear gate's mixture and the RMSNorm behind it, read and written once.

y_t = s_t / rms(s_t) with s_t = e_t + g_t e_{t-1}, s_0 = e_0 (pgolf.model.smear; the gates g are made outside). The
backward computes s again; a token adds to its own gradient and to that of the one before it, so each program computes
the gradients of two sums and none writes what another one does.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.fused.launch import wide

EPSILON = 1.1920928955078125e-07  # that of pgolf.model.norm


def reference(embedded: Tensor, gate: Tensor) -> Tensor:
    """embedded [B, T, dim], gate [B, T] -> [B, T, dim] in the dtype of embedded."""
    dtype = torch.promote_types(embedded.dtype, torch.float32)
    wider, gate = embedded.to(dtype), gate.to(dtype)
    mixed = torch.cat((wider[:, :1], wider[:, 1:] + gate[:, 1:, None] * wider[:, :-1]), dim=1)
    return (mixed * (mixed.square().mean(-1, keepdim=True) + EPSILON).rsqrt()).to(embedded.dtype)


def fused(embedded: Tensor, gate: Tensor) -> Tensor:
    """As `reference`, in the dtype that torch gives what it norms, with which the residual stream begins: under
    autocast that is fp32, from the release on that lists rms_norm there."""
    normed = F.rms_norm(embedded.new_empty((1, 1)), (1,))
    return forward(embedded, gate, normed.dtype)


def example(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    """A small case: tensors with gradients, and the other arguments."""
    shapes = ((2, 4, 40), (2, 4))
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes], []


@torch.library.custom_op("pgolf::smear_norm", mutates_args=())
def forward(embedded: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    """embedded [B, T, dim], gate [B, T] -> [B, T, dim] in `dtype`."""
    out = embedded.new_empty(embedded.shape, dtype=dtype)
    _launch(_forward_kernel, embedded, gate, (out,))
    return out


@torch.library.custom_op("pgolf::smear_norm_backward", mutates_args=())
def backward(gradient: Tensor, embedded: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of embedded and gate."""
    results = _gradients(embedded, gate)
    _launch(_backward_kernel, embedded, gate, (gradient.contiguous(), *results))
    return results


@forward.register_fake
def _(embedded: Tensor, gate: Tensor, dtype: torch.dtype) -> Tensor:
    return embedded.new_empty(embedded.shape, dtype=dtype)


@backward.register_fake
def _(gradient: Tensor, embedded: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return _gradients(embedded, gate)


def _gradients(embedded: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(embedded, memory_format=torch.contiguous_format),
        torch.empty_like(gate, memory_format=torch.contiguous_format),
    )


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *backward(gradient, *ctx.saved_tensors), None


forward.register_autograd(_backward, setup_context=_keep)


def _launch(kernel: Any, embedded: Tensor, gate: Tensor, rest: tuple[Tensor, ...]) -> None:
    """Run a kernel with one program a token."""
    rows, tokens, width = embedded.shape
    block = triton.next_power_of_2(width)
    if rows * tokens:
        kernel[(rows * tokens,)](
            *(embedded.contiguous(), gate.contiguous(), *rest, tokens),
            WIDTH=width,
            EPS=EPSILON,
            SUM=wide(embedded.dtype),
            BLOCK=block,
            num_warps=4 if block <= 2048 else 8,
        )


@triton.jit
def _sum_and_earlier(embedded, gate, row, position, inside, column, WIDTH: tl.constexpr, SUM: tl.constexpr):  # type: ignore[no-untyped-def]
    """s of a token, the embedding of the one before it (zero at the first of a row), and the gate."""
    own = tl.load(embedded + row * WIDTH + column, mask=inside, other=0.0).to(SUM)
    reads = tl.where(position > 0, WIDTH, 0)
    earlier = tl.load(embedded + (row - 1) * WIDTH + column, mask=column < reads, other=0.0).to(SUM)
    weight = tl.load(gate + row).to(SUM)
    return own + weight * earlier, earlier, weight


@triton.jit
def _gradient_of_sum(mixed, slope, WIDTH: tl.constexpr, EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of s from that of s / rms(s)."""
    inverse = 1.0 / tl.sqrt(tl.sum(mixed * mixed, 0) / WIDTH + EPS)
    normed = mixed * inverse
    return (slope - normed * (tl.sum(slope * normed, 0) / WIDTH)) * inverse


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    embedded,
    gate,
    out,
    tokens,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    mixed, _, _ = _sum_and_earlier(embedded, gate, row, row % tokens, inside, column, WIDTH, SUM)
    inverse = 1.0 / tl.sqrt(tl.sum(mixed * mixed, 0) / WIDTH + EPS)
    tl.store(out + row * WIDTH + column, (mixed * inverse).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    embedded,
    gate,
    gradient,
    for_embedded,
    for_gate,
    tokens,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    mixed, earlier, _ = _sum_and_earlier(embedded, gate, row, row % tokens, inside, column, WIDTH, SUM)
    slope = tl.load(gradient + row * WIDTH + column, mask=inside, other=0.0).to(SUM)
    total = _gradient_of_sum(mixed, slope, WIDTH, EPS)
    tl.store(for_gate + row, tl.sum(total * earlier, 0).to(for_gate.dtype.element_ty))
    if row % tokens != tokens - 1:  # the next token reads this one; names of its own, for a branch may not change types
        after, _own, weight = _sum_and_earlier(embedded, gate, row + 1, row % tokens + 1, inside, column, WIDTH, SUM)
        slope_after = tl.load(gradient + (row + 1) * WIDTH + column, mask=inside, other=0.0).to(SUM)
        total += weight * _gradient_of_sum(after, slope_after, WIDTH, EPS)
    tl.store(for_embedded + row * WIDTH + column, total.to(for_embedded.dtype.element_ty), mask=inside)

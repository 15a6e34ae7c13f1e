"""Cross entropy of softcapped scores, read once and never written: neither capped scores nor probabilities are stored.

z = cap tanh(x / cap); loss = logsumexp(z) - z_target, row by row, with a running maximum and sum in fp32 over BLOCK
columns at a time. The gradient of x_j is (g exp(z_j - lse) - l [j = target]) (1 - tanh(x_j / cap)^2), where l is the
gradient of the loss and g that of the loss plus that of lse. Source: PR 1787. So weights of tokens, and a z-loss
(a multiple of lse^2), are what the caller makes of the two values of each row: see `weighted`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgolf.kernels.fused.launch import wide

BLOCK = 1024  # columns at a time
WARPS = 8


def reference(scores: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """scores [N, V], targets int64 [N] -> losses and logsumexp of the capped scores, both [N], in fp32 (fp64 stays)."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    capped = scores if cap is None else cap * torch.tanh(scores / cap)
    lse = capped.logsumexp(-1)
    return lse - capped.gather(1, targets[:, None])[:, 0], lse


def fused(scores: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """As `reference`."""
    losses, lse = forward(scores, targets, cap)
    return losses, lse


def example(device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> tuple[list[Tensor], list[Any]]:
    """A small case: tensors with gradients, and the other arguments."""
    scores = 20.0 * torch.randn(4, 1500, generator=generator)
    return [scores.to(device, dtype)], [torch.arange(0, 1600, 400).to(device), 30.0]


@torch.library.custom_op("pgolf::cross_entropy", mutates_args=())
def forward(scores: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    """scores [N, V], targets int64 [N] -> losses and logsumexp, fp32 [N]."""
    losses, lse = _outputs(scores)
    _launch(_forward_kernel, scores, targets, (losses, lse), cap)
    return losses, lse


@torch.library.custom_op("pgolf::cross_entropy_backward", mutates_args=())
def backward(
    scores: Tensor, targets: Tensor, lse: Tensor, for_losses: Tensor, for_lse: Tensor, cap: float | None
) -> Tensor:
    """The gradient of the scores [N, V] in their dtype, from those of the losses and of lse, [N]."""
    result = torch.empty_like(scores, memory_format=torch.contiguous_format)
    rest = (lse.contiguous(), for_losses.contiguous(), (for_losses + for_lse).contiguous(), result)
    _launch(_backward_kernel, scores, targets, rest, cap)
    return result


@forward.register_fake
def _(scores: Tensor, targets: Tensor, cap: float | None) -> tuple[Tensor, Tensor]:
    return _outputs(scores)


@backward.register_fake
def _(scores: Tensor, targets: Tensor, lse: Tensor, for_losses: Tensor, for_lse: Tensor, cap: float | None) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _outputs(scores: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(scores.dtype, torch.float32)
    return scores.new_empty(scores.shape[0], dtype=dtype), scores.new_empty(scores.shape[0], dtype=dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    scores, targets, ctx.cap = inputs
    ctx.save_for_backward(scores, targets, output[1])


def _backward(ctx: Any, for_losses: Tensor, for_lse: Tensor) -> tuple[Tensor | None, None, None]:
    scores, targets, lse = ctx.saved_tensors
    return backward(scores, targets, lse, for_losses, for_lse, ctx.cap), None, None


forward.register_autograd(_backward, setup_context=_keep)


def _launch(kernel: Any, scores: Tensor, targets: Tensor, rest: tuple[Tensor, ...], cap: float | None) -> None:
    """Run a kernel with one program a row."""
    rows, columns = scores.shape
    if rows:
        kernel[(rows,)](
            *(scores.contiguous(), targets.contiguous(), *rest, columns),
            CAP=cap or 0.0,
            SUM=wide(scores.dtype),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )


@triton.jit
def _capped(x, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """cap tanh(x / cap); x where CAP is 0."""
    if CAP > 0.0:
        far = tl.exp(tl.abs(x) * (-2.0 / CAP))
        x = tl.where(x < 0.0, -CAP, CAP) * ((1.0 - far) / (1.0 + far))
    return x


@triton.jit
def _sloped(gradient, x, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The gradient of x from that of `_capped`: times 1 - tanh(x / cap)^2."""
    if CAP > 0.0:
        far = tl.exp(tl.abs(x) * (-2.0 / CAP))
        gradient *= 4.0 * far / ((1.0 + far) * (1.0 + far))
    return gradient


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    scores, targets, losses, lse, columns, CAP: tl.constexpr, SUM: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * columns
    column = tl.arange(0, BLOCK)
    largest = tl.full((), float("-inf"), SUM)
    total = tl.full((), 0.0, SUM)
    for start in range(0, columns, BLOCK):
        inside = column < columns - start
        z = _capped(tl.load(scores + start + column, mask=inside, other=0.0).to(SUM), CAP)
        z = tl.where(inside, z, float("-inf"))
        known = largest
        largest = tl.maximum(known, tl.max(z, 0))
        total = total * tl.exp(known - largest) + tl.sum(tl.exp(z - largest), 0)
    aimed = _capped(tl.load(scores + tl.load(targets + row)).to(SUM), CAP)
    denominator = largest + tl.log(total)
    tl.store(lse + row, denominator)
    tl.store(losses + row, denominator - aimed)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    scores,
    targets,
    lse,
    for_losses,
    for_all,
    result,
    columns,
    CAP: tl.constexpr,
    SUM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scores += row * columns
    result += row * columns
    column = tl.arange(0, BLOCK)
    target = tl.load(targets + row)
    denominator = tl.load(lse + row)
    hit, every = tl.load(for_losses + row).to(SUM), tl.load(for_all + row).to(SUM)
    for start in range(0, columns, BLOCK):
        inside = column < columns - start
        x = tl.load(scores + start + column, mask=inside, other=0.0).to(SUM)
        gradient = every * tl.exp(_capped(x, CAP) - denominator) - tl.where(column + start == target, hit, 0.0)
        tl.store(result + start + column, _sloped(gradient, x, CAP).to(result.dtype.element_ty), mask=inside)

"""Parameter-free RMSNorm with its epsilon written down."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The published scripts leave epsilon to the library, whose default changed between versions: pinned here (fp32
# machine epsilon).
EPSILON = 1.1920928955078125e-07


class _RMSNormCPU(torch.autograd.Function):
    """RMSNorm in a third of the memory passes that autograd makes of the composite operation on a CPU."""

    @staticmethod
    def forward(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        inverse = x.square().mean(-1, keepdim=True).add_(EPSILON).rsqrt_()
        return x * (inverse * scale), inverse

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:  # type: ignore[no-untyped-def]
        ctx.scale = inputs[1]
        ctx.save_for_backward(inputs[0], output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        x, inverse = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, x)[..., None].mul_(inverse * inverse / x.shape[-1])
        return torch.addcmul(grad, x, along, value=-1.0).mul_(inverse * ctx.scale), None


def rms_norm(x: Tensor, scale: float = 1.0) -> Tensor:
    """x [..., n] divided by its root mean square over the last dimension, times `scale`."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _RMSNormCPU.apply(x, scale)[0]
    if x.is_cuda:
        # computed in fp32 and rounded to the dtype of x, as autocast left it until torch 2.11: now it gives fp32
        with torch.autocast("cuda", enabled=False):
            return F.rms_norm(x, (x.shape[-1],), eps=EPSILON) * scale
    return F.rms_norm(x, (x.shape[-1],), eps=EPSILON) * scale


class RMSNorm(nn.Module):
    """`rms_norm` as a module, so that its output can be observed."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., n] -> [..., n]."""
        return rms_norm(x)

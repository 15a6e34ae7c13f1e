"""Muon: momentum whose update is replaced by its nearest (semi-)orthogonal matrix.

Source: Jordan et al., Muon (2024); Polar Express coefficients: Amsel et al. (2025), as used from PR 1787 on.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

# Coefficients (a, b, c) of the iterations X <- a X + (b A + c A^2) X with A = X X^T. One triple is used again and
# again;
# a list of several is walked once and not beyond its end.
STOCK: tuple[tuple[float, float, float], ...] = ((3.4445, -4.775, 2.0315),)
POLAR_EXPRESS: tuple[tuple[float, float, float], ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(
    matrices: Tensor, steps: int, coefficients: tuple[tuple[float, float, float], ...] = POLAR_EXPRESS
) -> Tensor:
    """Newton-Schulz iteration on a batch [n, rows, cols]; returns the same shape and dtype.

    Singular values are driven towards 1. At most as many iterations as there are coefficients, unless there is only
    one triple.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in coefficients * steps if len(coefficients) == 1 else coefficients[:steps]:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a, alpha=1.0)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; same-shaped matrices are orthogonalised in one batch.

    Per step and matrix: buffer <- momentum * buffer + g; u = g + momentum * buffer (nesterov) or buffer;
    row_normalise: every row of u is divided by its norm (MuonEq-R, PR 1394); O = orthogonalise(u);
    p <- p (1 - lr * weight_decay) - lr * sqrt(max(1, rows/cols)) * O.
    The iteration runs in bf16 on CUDA and fp32 elsewhere. Raises ValueError for a parameter that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        row_normalise: bool,
        newton_schulz_steps: int,
        coefficients: Literal["stock", "polar_express"],
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "row_normalise": row_normalise,
            "steps": newton_schulz_steps,
            "coefficients": coefficients,
        }
        if newton_schulz_steps < 1 or (coefficients == "polar_express" and newton_schulz_steps > len(POLAR_EXPRESS)):
            raise ValueError(
                f"newton_schulz_steps={newton_schulz_steps} must be 1 or more, "
                f"and at most {len(POLAR_EXPRESS)} with coefficients=polar_express"
            )
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._step_batch(parameters, group)

    def _step_batch(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        gradients = torch.stack([parameter.grad for parameter in parameters])  # type: ignore[misc]
        for parameter in parameters:
            self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, list(gradients))
        update = torch.stack(buffers)
        if group["nesterov"]:
            update = gradients + group["momentum"] * update
        if group["row_normalise"]:
            update = update / update.norm(dim=-1, keepdim=True).clamp_min(1e-7)
        work = update.to(torch.bfloat16) if update.is_cuda else update
        coefficients = POLAR_EXPRESS if group["coefficients"] == "polar_express" else STOCK
        direction = orthogonalise(work, group["steps"], coefficients).to(update.dtype)
        rows, cols = parameters[0].shape
        weights: list[Tensor] = list(parameters)
        torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(direction), alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5)

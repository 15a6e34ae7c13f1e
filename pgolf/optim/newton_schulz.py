"""Newton-Schulz iteration: the nearest (semi-)orthogonal matrix of each of a batch of matrices.

Source: Jordan et al., Muon (2024); Polar Express coefficients: Amsel et al. (2025), as used from PR 1787 on.
"""

from typing import Literal

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]
Rounding = Literal["fused", "published", "early"]

# Coefficients (a, b, c) of the iterations X <- a X + (b A + c A^2) X with A = X X^T. One triple is used again and
# again; a list of several is walked once and not beyond its end.
STOCK: Coefficients = ((3.4445, -4.775, 2.0315),)
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def orthogonalise(
    matrices: Tensor, steps: int, coefficients: Coefficients = POLAR_EXPRESS, rounding: Rounding = "fused"
) -> Tensor:
    """Newton-Schulz iteration on a batch [n, rows, cols]; returns the same shape and dtype.

    Singular values are driven towards 1. At most as many iterations as there are coefficients, unless there is only
    one triple. rounding: where a 16-bit iteration rounds. `fused` rounds once a product; `published` and `early` round
    after every operation in the order of the published scripts with parameter banks (PR 1530 and after) and before
    them, and give those scripts' bits. In fp32 the three differ in the last bits alone.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    # a copy in place of a transposed view: products of views are several times slower on a CPU
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).contiguous()
    for triple in coefficients * steps if len(coefficients) == 1 else coefficients[:steps]:
        x = _ITERATIONS[rounding](x, *triple)
    return x.mT if tall else x


def _fused(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a, alpha=1.0)


def _published(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return a * x + (b * gram + c * (gram @ gram)) @ x


def _early(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return a * x + (b * gram + (c * gram) @ gram) @ x


_ITERATIONS = {"fused": _fused, "published": _published, "early": _early}

"""Newton-Schulz iteration: the nearest (semi-)orthogonal matrix of each of a batch of matrices.

Source: Jordan et al., Muon (2024); Polar Express coefficients: Amsel et al. (2025), as used from PR 1787 on.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pgolf.kernels.fused.kernels import Symmetric

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
# Iterations that share one Gram matrix, and how long a matrix must be for that to pay. In bf16 one for all five loses
# the singular values below a tenth of the largest; three and two keep them as well as the published rounding does.
SHARED, LONG = 3, 2
TILE = 256  # rows of X X^T that are computed at once on a CPU
LARGE = 2**16  # elements from which a CPU takes matrices one by one
EPS = 1e-7


def orthogonalise(
    matrices: Tensor,
    steps: int,
    coefficients: Coefficients = POLAR_EXPRESS,
    rounding: Rounding = "fused",
    symmetric: Symmetric | None = None,
) -> Tensor:
    """Newton-Schulz iteration on a batch [n, rows, cols]; returns the same shape and dtype.

    Singular values are driven towards 1. At most as many iterations as there are coefficients, unless there is only
    one triple. rounding: where a 16-bit iteration rounds. `fused` rounds once a product; `published` and `early` round
    after every operation in the order of the published scripts with parameter banks (PR 1530 and after) and before
    them, and give those scripts' bits. In fp32 the three differ in the last bits alone. symmetric: what computes the
    symmetric products of `fused`; None: plain products.
    """
    iterate = partial(_fused, symmetric=symmetric) if rounding == "fused" else _ITERATIONS[rounding]

    def all_of_them(x: Tensor) -> Tensor:
        for triple in _triples(steps, coefficients):
            x = iterate(x, *triple)
        return x

    return _lying_and_normalised(matrices, all_of_them)


def orthogonalise_by_gram(
    matrices: Tensor, steps: int, coefficients: Coefficients = POLAR_EXPRESS, symmetric: Symmetric | None = None
) -> Tensor:
    """The same iteration on a batch [n, rows, cols] with a third fewer operations on long matrices.

    All X of an iteration are polynomials of A = X X^T times the first X. So a matrix that is at least twice as long as
    it is wide takes up to three iterations on A alone, whose side is the shorter one, and is multiplied once for all of
    them. In bf16 this rounds about as much as `published` does, up to 1.7 times; others are iterated as by `fused`.
    """
    return _lying_and_normalised(matrices, lambda x: _by_gram(x, _triples(steps, coefficients), symmetric))


def _lying_and_normalised(matrices: Tensor, iterate: Callable[[Tensor], Tensor]) -> Tensor:
    """`iterate` on the matrices divided by their Frobenius norms, turned so that none stands higher than it is wide.

    On a CPU it gets large matrices one by one, so that its products and what lies between them stay in the caches.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    if not matrices.is_cuda and matrices[0].numel() >= LARGE:
        result = torch.empty_like(matrices)
        for one, made in zip(matrices, result, strict=True):
            x = one.mT.contiguous() if tall else one
            x = iterate(x / (x.norm() + EPS))
            made.copy_(x.mT if tall else x)
        return result
    x = matrices.mT if tall else matrices
    # a copy in place of a transposed view: products of views are several times slower on a CPU
    x = iterate((x / (x.norm(dim=(-2, -1), keepdim=True) + EPS)).contiguous())
    return x.mT if tall else x


def _triples(steps: int, coefficients: Coefficients) -> Coefficients:
    return coefficients * steps if len(coefficients) == 1 else coefficients[:steps]


def _fused(x: Tensor, a: float, b: float, c: float, symmetric: Symmetric | None = None) -> Tensor:
    product = _products(x, symmetric)
    gram = product(x)
    return _added(x, product(gram, gram, b, c), x, beta=a, alpha=1.0)


def _published(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return a * x + (b * gram + c * (gram @ gram)) @ x


def _early(x: Tensor, a: float, b: float, c: float) -> Tensor:
    gram = x @ x.mT
    return a * x + (b * gram + (c * gram) @ gram) @ x


_ITERATIONS = {"published": _published, "early": _early}


def _by_gram(x: Tensor, triples: Sequence[tuple[float, float, float]], symmetric: Symmetric | None) -> Tensor:
    """All iterations on lying matrices [..., rows, cols]; those that are not long gain nothing from sharing."""
    if x.shape[-1] < LONG * x.shape[-2]:
        for triple in triples:
            x = _fused(x, *triple, symmetric=symmetric)
        return x
    for first in range(0, len(triples), SHARED):
        x = _several(x, triples[first : first + SHARED], symmetric)
    return x


def _several(x: Tensor, triples: Sequence[tuple[float, float, float]], symmetric: Symmetric | None) -> Tensor:
    """X <- P_k ... P_1 X with P = a + b A + c A^2, and A <- A P^2 in between: everything commutes."""
    multiplied, product = _products(x, symmetric), None
    gram = multiplied(x)
    for index, (a, b, c) in enumerate(triples):
        factor = multiplied(gram, gram, b, c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if index + 1 < len(triples):
            gram = gram @ factor @ factor
    assert product is not None  # there is at least one triple
    return product @ x


def _products(x: Tensor, symmetric: Symmetric | None) -> Symmetric:
    """What computes the symmetric products of one matrix, or of a batch as x is."""
    return symmetric if symmetric is not None and x.ndim == 3 else _plain


def _plain(x: Tensor, base: Tensor | None = None, beta: float = 0.0, scale: float = 1.0) -> Tensor:
    """X X^T, or beta B + scale X^2 of symmetric X."""
    return _gram(x) if base is None else _added(base, x, x, beta=beta, alpha=scale)


def _added(base: Tensor, x: Tensor, y: Tensor, *, beta: float, alpha: float) -> Tensor:
    """beta B + alpha X Y of matrices or of batches, rounded once."""
    return (torch.addmm if x.ndim == 2 else torch.baddbmm)(base, x, y, beta=beta, alpha=alpha)


def _gram(x: Tensor) -> Tensor:
    """X X^T; on a CPU what is above the diagonal is computed once."""
    size = x.shape[-2]
    if x.ndim > 2 or size <= TILE:
        return x @ x.mT
    result = x.new_empty(size, size)
    for first in range(0, size, TILE):
        rows = slice(first, first + TILE)
        torch.mm(x[rows], x[first:].T, out=result[rows, first:])
        result[rows, :first] = result[:first, rows].T
    return result

"""alpha-entmax: a softmax that gives exactly zero to scores far below the best (Peters, Niculae, Martins 2019,
arXiv 1905.05702; Tsallis entropies: Blondel, Martins, Niculae 2019, arXiv 1901.02324).

p_i = exp_alpha(z_i - c) with exp_alpha(x) = [1 + (alpha - 1) x]_+^(1 / (alpha - 1)), and c the one number for which
they sum to 1. alpha = 1 is the softmax, whose c is the logarithm of the sum of exponentials; alpha = 2 is sparsemax,
the Euclidean projection onto the simplex (Martins and Astudillo 2016, arXiv 1602.02068). The papers write
tau = (alpha - 1) c - 1; in c nothing is lost to rounding as alpha comes close to 1.

All work along the last dimension, in fp32 or fp64, on scores of which some may be minus infinity, but not all of a row.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

HALVINGS = 10  # of an interval of at most log n
STEPS = 4  # Newton's, behind them: from the left of the root of a convex function each squares the error, about
POLISH = 1  # Newton's, behind what sorting gives: what was lost to rounding


def check_alpha(alpha: float) -> None:
    """ValueError unless there is such a mapping: 1 <= alpha <= 2."""
    if not 1.0 <= alpha <= 2.0:
        raise ValueError(f"entmax alpha={alpha} must lie between 1 (softmax) and 2 (sparsemax)")


def exponential(x: Tensor, alpha: float) -> Tensor:
    """exp_alpha(x) for x <= 0, of the same shape; zero at minus infinity."""
    if alpha == 1.0:
        return x.exp()
    if alpha == 2.0:
        return (1.0 + x).clamp_min_(0.0)
    if alpha == 1.5:
        return (1.0 + 0.5 * x).clamp_min_(0.0).square_()
    return ((alpha - 1.0) * x).clamp_min_(-1.0).log1p_().div_(alpha - 1.0).exp_()


def slopes(p: Tensor, alpha: float) -> Tensor:
    """The derivative of exp_alpha where its value is p: p^(2 - alpha), and zero where p is."""
    if alpha == 1.0:
        return p
    if alpha == 2.0:
        return (p > 0.0).to(p.dtype)
    return p.sqrt() if alpha == 1.5 else p ** (2.0 - alpha)


def normaliser(scores: Tensor, alpha: float) -> Tensor:
    """c of every row: scores [..., n] -> [..., 1].

    Exact by sorting for alpha = 1.5 and 2 (arXiv 1905.05702, algorithm 2; arXiv 1602.02068, algorithm 1), by bisection
    for any other (algorithm 1). Newton steps finish both, to rounding.
    """
    check_alpha(alpha)
    if alpha == 1.0:
        return scores.logsumexp(-1, keepdim=True)
    best = scores.amax(-1, keepdim=True)
    below = scores - best
    scaled = ((alpha - 1.0) * below).clamp_min_(-1.0)  # nothing below has a probability; infinity would spoil the sums
    if alpha == 2.0:
        c, steps = 1.0 + _sparsemax_threshold(scaled), POLISH
    elif alpha == 1.5:
        c, steps = 2.0 * (1.0 + _entmax15_threshold(scaled)), POLISH
    else:
        c, steps = _bisected(below, alpha), STEPS
    for _ in range(steps):
        p = exponential(below - c, alpha)
        c = c + (p.sum(-1, keepdim=True) - 1.0) / slopes(p, alpha).sum(-1, keepdim=True)
    return best + c


def gradient(p: Tensor, slope: Tensor, alpha: float) -> Tensor:
    """What a loss with the slope dL/dp = `slope` [..., n] has for a slope in the scores, [..., n]:

    dz = s (dp - sum(s dp) / sum(s)), s = p^(2 - alpha) on the support (arXiv 1905.05702, proposition 2). With
    alpha = 1, s = p: the softmax's own.
    """
    s = slopes(p, alpha)
    return s * (slope - (s * slope).sum(-1, keepdim=True) / s.sum(-1, keepdim=True))


class _Entmax(torch.autograd.Function):
    """Keeps the probabilities, which are all that the gradient reads."""

    @staticmethod
    def forward(scores: Tensor, alpha: float) -> Tensor:
        return exponential(scores - normaliser(scores, alpha), alpha)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.alpha = inputs[1]  # type: ignore[attr-defined]
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient(p, slope, ctx.alpha), None  # type: ignore[attr-defined]


def entmax(scores: Tensor, alpha: float) -> Tensor:
    """Probabilities [..., n] of scores [..., n], with the gradient of `gradient`. It keeps all of them: the judge of
    pgolf.kernels.entmax_attention, which does not. ValueError unless 1 <= alpha <= 2."""
    return _Entmax.apply(scores, alpha)


def _sparsemax_threshold(x: Tensor) -> Tensor:
    """tau with sum [x - tau]_+ = 1, for x [..., n] with 0 as its largest: [..., 1]."""
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    thresholds = (ordered.cumsum(-1) - 1.0) / counts
    return _last_within(thresholds, ordered)


def _entmax15_threshold(x: Tensor) -> Tensor:
    """tau with sum [x - tau]_+^2 = 1, for x [..., n] with 0 as its largest: [..., 1]. Over the k largest it is their
    mean less the root of (1 - k variance) / k."""
    ordered = x.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    means = ordered.cumsum(-1) / counts
    spread = ordered.square().cumsum(-1) - counts * means.square()
    thresholds = means - ((1.0 - spread) / counts).clamp_min(0.0).sqrt()
    return _last_within(thresholds, ordered)


def _last_within(thresholds: Tensor, ordered: Tensor) -> Tensor:
    """The threshold of the largest support that is above it, [..., 1]; both [..., n], the k-th of the k largest."""
    size = (thresholds < ordered).sum(-1, keepdim=True)
    return thresholds.gather(-1, size - 1)


def _bisected(below: Tensor, alpha: float) -> Tensor:
    """c - best, from the left, for below [..., n] with 0 as its largest: between 0, where the best alone has all of it,
    and what n equal scores have."""
    low = torch.zeros_like(below[..., :1])
    width = (1.0 - below.shape[-1] ** (1.0 - alpha)) / (alpha - 1.0)
    for _ in range(HALVINGS):
        width /= 2.0
        middle = low + width
        low = torch.where(exponential(below - middle, alpha).sum(-1, keepdim=True) >= 1.0, middle, low)
    return low

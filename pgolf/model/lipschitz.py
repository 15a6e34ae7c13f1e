"""Lipschitz accounting: upper bounds of named terms of a model, of its weights as they are.

A network of RMSNorm and dot-product attention has no finite global Lipschitz constant: a norm's slope is one over the
root mean square of what enters it, which can be as small as it likes, and the probabilities of attention move with
their scores as the products of two inputs (Kim, Papamakarios, Mnih 2021, arXiv 2006.04710). So nothing here bounds the
network. What is bounded, exactly and from weights alone, are its terms, with these held still: the factor 1 / rms of
every norm (as if it were one), the probabilities of attention, gates and directions of exclusion, and the embedding x0
that a block mixes in. Lengths are L2, of several tokens that of the longest. For a pass through a block, with
s = 1 / sqrt(depth + 1) or 1 and every normed input on or within the sphere of radius s sqrt(dim):

  attention = s max|attn_scale| |W_o| sqrt(num_heads) |W_v| g: of the values' path. Rows of probabilities sum to one, so
              no head's mean of values is longer than the longest; g bounds a gate and an exclusion, 1 for most.
  mlp       = s max|mlp_scale| times the largest slope of n -> mlp(n) for |n| <= s sqrt(dim); squared activations have
              none beyond a radius, within one it is |W_down| max|f'| |W_up| with |h| <= |W_up| |n|.
  product   = max|m0| (1 + attention) (1 + mlp), or max|m0| (1 + attention + mlp) side by side.

|W| is the largest singular value. A query's score is within gain sqrt(head_dim), since queries and keys are normed:
with the probabilities not held still, these move by at most half of what a query's scores do (the softmax's slope; an
entmax's is at most one).
None stands for a term without a formula here: state spaces, differences of two maps, mixed values, lanes, parts between
a block's norm and its MLP or behind it.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.activations import ASQU, XIELU
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.basis import InRandomRows, LowRankLinear, OrthogonalLinear
from pgolf.model.block import Block
from pgolf.model.exclude import GatedOwnValue
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.legendre import SeriesLinear
from pgolf.model.mlp import LeakyReLUSquared, Mlp, SwiGLU
from pgolf.model.moe import OPEN, SoftDense
from pgolf.model.plan import Pass
from pgolf.model.repeats import OwnMlp
from pgolf.model.roles import Linear, parameter_roles

Norm = Callable[[nn.Module], float | None]
"""The largest singular value of a linear map; None for a map that is not known to be linear."""

SILU_SLOPE = 1.0998393194  # the largest of x sigmoid(x), near 2.4


@torch.no_grad()
def named_terms(model: GPT) -> dict[str, Any]:
    """By the names of the head of this file, for the plan that the model walks now: `singular_values` by parameter,
    `query_gains` and `score_bounds` by block (the largest over heads and passes), `temperature` and
    `logit_multiplier` of the logits, and `attention`, `mlp` and `product` by block, the largest over its passes."""
    known: dict[int, float | None] = {}

    def norm(module: nn.Module) -> float | None:
        if id(module) not in known:
            known[id(module)] = map_norm(module)
        return known[id(module)]

    gains: dict[str, float] = {}
    scores: dict[str, float] = {}
    found: dict[str, dict[str, list[float | None]]] = {name: {} for name in ("attention", "mlp", "product")}
    for step in model.plan.passes:
        block, name = model.blocks[step.block], str(step.block)
        if block.attn is not None:
            vectors = model.vectors_of(step)
            gain = _largest_size(block.attn.gains if vectors is None else vectors.q_gain)
            gains[name] = max(gains.get(name, 0.0), gain)
            scores[name] = gains[name] * math.sqrt(block.attn.head_dim)
        for term, value in block_terms(model, step, norm).items():
            found[term].setdefault(name, []).append(value)
    return {
        "singular_values": singular_values(model),
        "query_gains": gains,
        "score_bounds": scores,
        "temperature": model.temperature,
        "logit_multiplier": model.logit_multiplier if model.logit_multiplier is not None else 1.0,
        **{term: {name: _most(values) for name, values in blocks.items()} for term, blocks in found.items()},
    }


def singular_values(model: nn.Module) -> dict[str, float]:
    """The largest singular value of every two-dimensional parameter that is no scale, by name."""
    roles = parameter_roles(model)
    return {
        name: largest_singular_value(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and roles[name] != "scalar"
    }


def largest_singular_value(matrix: Tensor) -> float:
    """Of a matrix in any dtype, by the eigenvalues of its smaller Gram matrix in fp64; NaN where it is not finite."""
    wide = matrix.detach().double()
    if not bool(wide.isfinite().all()):
        return math.nan
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0).sqrt())


def map_norm(module: nn.Module) -> float | None:
    """The largest singular value of a linear map, of two factors or shared coefficients that of the matrix they make;
    None for what is not known to be linear."""
    if type(module) is Linear:
        return largest_singular_value(module.weight)
    if isinstance(module, LowRankLinear):
        width = module.down.weight.shape[1]
    elif isinstance(module, InRandomRows):
        width = module.basis.shape[1]
    elif isinstance(module, OrthogonalLinear):
        width = module.factor.weight.shape[1]
    elif isinstance(module, SeriesLinear):
        width = module.shape[1]
    else:
        return None
    device = next(module.parameters(), torch.empty(0)).device
    return largest_singular_value(module(torch.eye(width, device=device)))


def block_terms(model: GPT, step: Pass, norm: Norm) -> dict[str, float | None]:
    """attention, mlp and product of one pass."""
    block = model.blocks[step.block]
    vectors = model.vectors_of(step)
    scales = block if vectors is None else vectors
    s = (step.depth + 1) ** -0.5 if block.layer_scale else 1.0
    attention, mlp = _attention_term(block, norm), _mlp_of(block, step, norm, s * math.sqrt(model.dim))
    if attention is not None and block.attn is not None:
        attention *= s * _largest_size(scales.attn_scale)
    if mlp is not None:
        mlp *= s * _largest_size(scales.mlp_scale)
    product = None
    if attention is not None and mlp is not None and step.form != "lanes" and _ends_here(block):
        both = 1.0 + attention + mlp if step.form == "parallel" else (1.0 + attention) * (1.0 + mlp)
        product = _largest_size(scales.resid_mix[0]) * both
    return {"attention": attention, "mlp": mlp, "product": product}


def mlp_slope(mlp: nn.Module, radius: float, norm: Norm) -> float | None:
    """A Lipschitz constant of n -> mlp(n) over |n| <= radius, each token by itself; None without a formula."""
    if not isinstance(mlp, Mlp) or not isinstance(fc := getattr(mlp, "fc", None), nn.Module):
        return None
    up, down = norm(fc), norm(mlp.proj)
    if up is None or down is None:
        return None
    if type(mlp) is SwiGLU:
        gate = norm(mlp.fc_gate)
        # |silu'| <= 1.1 and |silu(x)| <= |x|
        return None if gate is None else down * gate * up * radius * (SILU_SLOPE + 1.0)
    if type(mlp) is SoftDense:
        return _experts_slope(mlp, radius, up, down, norm)
    steepest = _steepest(mlp, up * radius)
    return None if steepest is None else down * steepest * up


def _steepest(mlp: Mlp, reach: float) -> float | None:
    """The largest |f'(h)| of an activation for |h| <= reach."""
    if type(mlp) is LeakyReLUSquared:
        return 2.0 * reach * max(1.0, mlp.slope**2)
    if type(mlp) is XIELU:
        a, below, b, b_below = map(abs, mlp.xielu.tolist() if mlp.trainable else mlp.values)
        return 2.0 * reach * max(a, below) + max(b, b_below)
    if type(mlp) is ASQU:
        return 2.0 * reach * max(1.0, _largest_size(mlp.asqu))
    return None


def _experts_slope(mlp: SoftDense, radius: float, up: float, down: float, norm: Norm) -> float | None:
    """Of weighted experts: the activations move with weights of at most one, and the weights, a softmax of slope 1/2
    times sigmoids of slope 1/4, with activations of at most (|W_up| radius)^2."""
    if mlp.injects:
        return None
    router, curved = mlp.router, max(1.0, mlp.slope**2)
    gate = OPEN if router.frozen_gate else 1.0
    route, gating = norm(router.route), 0.0 if router.frozen_gate else norm(router.gate)
    if route is None or gating is None:
        return None
    weights = 0.5 * gate * route + 0.25 * gating
    return down * curved * (2.0 * gate * up**2 * radius + (up * radius) ** 2 * weights)


def _attention_term(block: Block, norm: Norm) -> float | None:
    """|W_o| sqrt(num_heads) |W_v| g; 0 for a block that is an MLP alone."""
    attention = block.attn
    if block.state_space is not None:
        return None
    if attention is None:
        return 0.0
    out, values, held = norm(attention.proj), norm(attention.c_v), _held(attention)
    if out is None or values is None or held is None:
        return None
    return out * math.sqrt(attention.num_heads) * values * held


def _held(attention: CausalSelfAttention) -> float | None:
    """What a gate and an exclusion, held still, lengthen a head's output by at most."""
    if attention.difference is not None or attention.value_residual is not None:
        return None
    factor = 1.0
    if isinstance(attention.gate, AttentionOutGate):
        factor = 2.0
    elif attention.gate is not None and not isinstance(attention.gate, HeadGate):
        return None
    if isinstance(attention.exclude, GatedOwnValue):  # 1 - tanh(alpha) along the value
        factor *= max(1.0, 1.0 - float(torch.tanh(attention.exclude.xsa_alpha).min()))
    return factor


def _mlp_of(block: Block, step: Pass, norm: Norm, radius: float) -> float | None:
    if block.mlp_smear is not None:
        return None
    if step.visit and len(block.repeats):
        own = block.repeats[step.visit - 1]
        return mlp_slope(own.mlp, radius, norm) if isinstance(own, OwnMlp) else None
    return mlp_slope(block.mlp, radius, norm)


def _ends_here(block: Block) -> bool:
    """Whether nothing of the block follows its MLP."""
    return not len(block.ends) and block.phinta is None


def _largest_size(values: Tensor) -> float:
    return float(values.detach().abs().max())


def _most(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else max(known)  # type: ignore[type-var]

"""Floating point operations of a forward pass, from the shapes of the weights and the plan."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pgolf.model.gpt import GPT
from pgolf.model.head import UntiedHead
from pgolf.model.legendre import SeriesLinear
from pgolf.model.plan import LayerPlan
from pgolf.model.roles import Part, parameter_roles

PRODUCTS = ("matrix", "gate")  # roles of two-dimensional weights that are multiplied with every token


@dataclass(frozen=True)
class Flops:
    """Operations for one token. A multiplication with an addition counts as two."""

    blocks: int
    attention: float
    head: int

    @property
    def forward(self) -> float:
        """One forward pass."""
        return self.blocks + self.attention + self.head

    @property
    def training(self) -> float:
        """Forward and backward: the backward pass has two products for each of the forward pass."""
        return 3 * self.forward


def flops_per_token(model: GPT, plan: LayerPlan, sequence_tokens: int) -> Flops:
    """Operations of a forward pass along `plan`, mean over the tokens of a sequence.

    blocks: 2 n for every visited weight matrix of n elements, projections, gates and frozen ones alike, with what reads
    the embedding and the final norm. attention: token t of a
    sequence of T reads t keys and t values in each of H heads of width d, 4 t H d; the mean over the sequence is
    2 (T + 1) H d for each visited block (causal, so half of what dense formulas count), twice that
    where attention is the difference of two maps; for a state space in its place see `Mamba2.operations`. A block that
    is solved for a fixed point is visited as often as its solver evaluates it in training. head: 2 n of the output
    matrix and of the map to a narrow one.
    Norms, activations, gating and the softmax are not counted, as usual.
    """
    # a repeated visit multiplies with its own matrices in place of the block's, of the same shapes
    products = [_products(block) - sum(map(_products, block.repeats)) for block in model.blocks]
    attentions = [block.attn for block in model.blocks]
    widths = [0 if one is None else one.maps * one.num_heads * one.head_dim for one in attentions]
    spaces = [block.state_space for block in model.blocks]
    recurrent = [0.0 if one is None else one.operations(sequence_tokens) for one in spaces]
    visits = [step.block for step in plan.passes for _ in range(model.evaluations(step.block))]
    parts = (model.tok_emb, model.bigram, model.smear, model.value_embedding, model.phinta)
    around = sum(_products(part) for part in parts if part is not None) + _skips(model, plan)
    table = model.head if isinstance(model.head, UntiedHead) else model.tok_emb
    again = [step.block for step in plan.passes if step.form == "lanes"]  # an adapter sees each of two lanes
    adapters = [_products(block.phinta) if block.phinta is not None else 0 for block in model.blocks]
    return Flops(
        blocks=around + sum(products[block] for block in visits) + sum(adapters[block] for block in again),
        attention=sum(2.0 * (sequence_tokens + 1) * widths[block] + recurrent[block] for block in visits),
        head=2 * table.weight.numel() + _products(model.head),
    )


def _skips(model: GPT, plan: LayerPlan) -> int:
    """Products of compressed skips, for each lane that takes one."""
    if model.skip_compressors is None:
        return 0
    lanes = len(model.lanes.skip_lanes) if model.lanes is not None else 0
    times = [(step.pop, lanes if step.form == "lanes" else 1) for step in plan.passes if step.pop is not None]
    return sum(_products(model.skip_compressors[row]) * taken for row, taken in times)


def _products(module: nn.Module) -> int:
    roles = parameter_roles(module)
    shapes = [parameter.shape for name, parameter in module.named_parameters() if roles[name] in PRODUCTS]
    shapes += [
        part.get_buffer(name).shape for part in module.modules() if isinstance(part, Part) for name in part.fixed
    ]
    shapes += [torch.Size(part.shape) for part in module.modules() if isinstance(part, SeriesLinear)]
    return sum(2 * math.prod(shape) for shape in shapes if len(shape) == 2)

"""Matrices as smooth functions of depth: layers of a group share the coefficients of a Legendre series."""

import math
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from pgolf.model.roles import Init, Linear, Orthogonal, Part, constant, normal

if TYPE_CHECKING:
    from pgolf.model.block import Block
    from pgolf.model.gpt import GPT

DECAY = 0.5  # of the deviation of the coefficients' initial values, from one to the next


class Series(Part):
    """W_l = s_l sum_k P_k(t_l) C_k for the layers of a group, t_l = -1 .. 1 in equal steps (LegendreGPT, 2026-03-31).

    c0.weight, c1.weight, ... [out_features, in_features] are drawn from N(0, 0.25^k / out_features), or start as `init`
    says where the matrices of single layers do not start orthogonal (at zero, that is). scale [layers] holds s, from 1.
    """

    scale: nn.Parameter

    def __init__(self, shape: tuple[int, int], layers: int, terms: int, init: Init) -> None:
        super().__init__()
        self.shape, self.terms = shape, terms
        for term in range(terms):
            drawn = normal(DECAY**term / math.sqrt(shape[0])) if isinstance(init, Orthogonal) else init
            self.add_module(f"c{term}", Linear(shape[1], shape[0], "matrix", drawn))
        self.declare("scale", (layers,), "scalar", constant(1.0))
        places = np.linspace(-1.0, 1.0, layers)
        self.factors = np.polynomial.legendre.legvander(places, terms - 1).tolist()  # [layers][terms]: P_k(t_l)

    @property
    def coefficients(self) -> list[Linear]:
        """C_0, C_1, ..."""
        return [self.get_submodule(f"c{term}") for term in range(self.terms)]  # type: ignore[misc]

    def matrix(self, layer: int) -> Tensor:
        """W of the group's layer with this index, fp32 [out_features, in_features]."""
        pairs = zip(self.factors[layer], self.coefficients, strict=True)
        return self.scale[layer] * sum(factor * one.weight for factor, one in pairs)

    def listen(self, x: Tensor, layer: int) -> None:
        """Show x [..., in_features] to the coefficients that something listens to, times what the layer multiplies each
        with: so a Hessian adds up over the layers of the group as the error of one coefficient does."""
        for factor, one in zip(self.factors[layer], self.coefficients, strict=True):
            if one._forward_pre_hooks:
                one(self.scale[layer].to(x.dtype) * factor * x)


class SeriesLinear(nn.Module):
    """y = x W^T with the W that a series has for one layer. The series belongs to the model; this only reads it."""

    def __init__(self, series: Series, layer: int) -> None:
        super().__init__()
        self._series, self._layer = (series,), layer  # in a tuple: else it would be a module of this one too

    @property
    def shape(self) -> tuple[int, int]:
        """out_features, in_features."""
        return self._series[0].shape

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        series = self._series[0]
        series.listen(x, self._layer)
        return nn.functional.linear(x, series.matrix(self._layer).to(x.dtype))


class Legendre:
    """Gives the blocks of each group shared coefficients in place of matrices of their own, for attention and MLP.

    groups: [first, last] layer of each, inclusive; layers in none keep their matrices. attention_terms, mlp_terms: C_k
    of each matrix, which is what the artifact holds for all layers of the group. Published: two groups of eleven
    between a first and a last layer of their own, 6 and 3 terms, without U-Net skips, and learning rates 1.1^k for C_k,
    which are one rate here.

    Raises ValueError for groups that are none, that overlap or save nothing, and for blocks whose matrices differ.
    """

    def __init__(self, *, groups: list[list[int]], attention_terms: int, mlp_terms: int) -> None:
        if min(attention_terms, mlp_terms) < 1:
            raise ValueError(
                f"legendre: attention_terms={attention_terms} and mlp_terms={mlp_terms} must be at least 1"
            )
        taken: set[int] = set()
        for group in groups:
            layers = set(range(group[0], group[-1] + 1)) if len(group) == 2 else set()
            if not layers or layers & taken or min(layers) < 0:
                raise ValueError(f"legendre.groups={groups}: each must be [first, last] of layers that no other has")
            if len(layers) <= max(attention_terms, mlp_terms):
                raise ValueError(
                    f"legendre: {len(layers)} layers of group {group} are no more than the terms of their series "
                    f"({attention_terms} and {mlp_terms}), which would save nothing"
                )
            taken |= layers
        if not taken:
            raise ValueError("legendre.groups is empty: name a group, or take legendre=none")
        self.groups, self.last = [list(range(first, last + 1)) for first, last in groups], max(taken)
        self.terms = {"attn": attention_terms, "mlp": mlp_terms}

    def fit(self, model: "GPT") -> None:
        """ValueError when the model has other layers, or matrices that are not alike in a group."""
        if self.last >= len(model.blocks):
            raise ValueError(f"legendre.groups name layer {self.last}, but the model has {len(model.blocks)} layers")
        model.series = nn.ModuleDict()
        for layers in self.groups:
            blocks = [model.blocks[layer] for layer in layers]
            if any(len(block.repeats) for block in blocks):
                raise ValueError("legendre: MLPs of repeated visits begin as copies of matrices that these blocks lack")
            matrices = [_matrices(block) for block in blocks]
            shapes = [{name: each.weight.shape for name, each in found.items()} for found in matrices]
            if not shapes[0] or any(each != shapes[0] for each in shapes):
                raise ValueError(f"legendre: the layers {layers[0]}..{layers[-1]} have no matrices of the same shapes")
            if odd := [name for name in matrices[0] if len({_drawn(found[name]) for found in matrices}) > 1]:
                raise ValueError(
                    f"legendre: {odd[0]} starts at zero in some of the layers {layers[0]}..{layers[-1]} and not in "
                    "others (a fixed point's, model/equilibrium), which one series cannot: leave those out of the group"
                )
            made = nn.ModuleDict()
            for name, linear in matrices[0].items():
                part, _, leaf = name.rpartition(".")
                series = Series((*linear.weight.shape,), len(layers), self.terms[part], linear.inits["weight"])
                made[f"{part}_{leaf}"] = series
                for index, block in enumerate(blocks):
                    setattr(block.get_submodule(part), leaf, SeriesLinear(series, index))
            model.series[f"{layers[0]}_{layers[-1]}"] = made


def _drawn(linear: Linear) -> bool:
    """Whether its values are drawn at all."""
    return isinstance(linear.inits["weight"], Orthogonal)


def _matrices(block: "Block") -> dict[str, Linear]:
    """The plain matrices of a block's attention and MLP, by name."""
    return {
        name: module
        for name, module in block.named_modules()
        if type(module) is Linear
        and module.roles["weight"] == "matrix"
        and name.count(".") == 1
        and name.startswith(("attn.", "mlp."))
    }

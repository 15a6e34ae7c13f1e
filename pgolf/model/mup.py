"""Learning rates, initial values and logits that stay right when the model becomes wider (muP)."""

from typing import Literal

import torch
from torch import nn

from pgolf.model.roles import Orthogonal, declared, parameter_roles

Kind = Literal["muon", "adam"]


class WidthScaling:
    """Multipliers relative to a model of width `base_model_dim`, at which all of them are 1.

    Sources: Yang et al. (2022), arXiv 2203.03466, table 8, for Adam; Yang, Simon and Bernstein (2023) for orthogonal
    updates, whose scale sqrt(max(1, rows/cols)) already moves with the shape. With m = width / base_model_dim:

      role        learning rate (Adam)   learning rate (Muon)   initial standard deviation
      matrix      1 / m                  1                      1 / sqrt(m) where it is drawn from a normal
      head        1 / m                  1                      1 / m
      gate        as matrix where its inputs are the residual stream, else 1
      embedding   1                      1                      1
      scalar      1                      1                      1

    A tied embedding serves as head too: it keeps its own rates and initial values, and the logits are multiplied by
    1 / m (the paper's shared readout). Orthogonal initial values have the right norm at every width already.

    Widen a model by heads: queries and keys are normed a head, and a head that grows changes their products. Weight
    decay keeps its value, so that of a role on Adam acts 1 / m as strongly. Raises ValueError when base_model_dim < 1.
    """

    def __init__(self, *, base_model_dim: int) -> None:
        if base_model_dim < 1:
            raise ValueError(f"mup base_model_dim={base_model_dim} must be at least 1")
        self.base_model_dim = base_model_dim

    def ratio(self, width: int) -> float:
        """base_model_dim / width."""
        return self.base_model_dim / width

    def lr(self, role: str, shape: tuple[int, ...], width: int, kind: Kind) -> float:
        """Multiplier on the learning rate of a parameter of this role and shape in a model of this width."""
        return self.ratio(width) if kind == "adam" and (role == "head" or _hidden(role, shape, width)) else 1.0

    def initial(self, role: str, shape: tuple[int, ...], width: int, orthogonal: bool) -> float:
        """Multiplier on the initial values of a parameter; orthogonal: whether it was drawn so."""
        if role == "head":
            return self.ratio(width)
        return self.ratio(width) ** 0.5 if _hidden(role, shape, width) and not orthogonal else 1.0

    def logit_multiplier(self, width: int) -> float:
        """Multiplier on the logits of a model whose embedding is its head too, before the softcap."""
        return self.ratio(width)


def _hidden(role: str, shape: tuple[int, ...], width: int) -> bool:
    """Whether both sides of a parameter grow with the model."""
    return role == "matrix" or (role == "gate" and len(shape) == 2 and shape[-1] == width)


def width_of(model: nn.Module) -> int:
    """Width of the residual stream: what the model says, or else the last dimension of its embedding. ValueError when
    there is not one width."""
    if isinstance(dim := getattr(model, "dim", None), int):
        return dim
    roles = parameter_roles(model)
    widths = {p.shape[-1] for name, p in model.named_parameters() if roles[name] == "embedding"}
    if len(widths) != 1:
        raise ValueError(f"muP needs one width, that of the embedding; this model has {sorted(widths) or 'none'}")
    return int(widths.pop())


@torch.no_grad()
def scale_initial_values(model: nn.Module, scaling: WidthScaling) -> None:
    """Multiply the initial values in place, right after they were drawn: every parameter keeps its own random stream,
    so no other parameter's value moves."""
    width = width_of(model)
    for name, (part, local) in declared(model).items():
        parameter = model.get_parameter(name)
        if not parameter.is_meta:
            orthogonal = isinstance(part.inits[local], Orthogonal)
            parameter.mul_(scaling.initial(part.roles[local], tuple(parameter.shape), width, orthogonal))

"""Learning rates and initial values that stay right when the model becomes wider (muP)."""

from typing import Literal

import torch
from torch import nn

from pgolf.model.roles import parameter_roles

Kind = Literal["muon", "adam"]


class WidthScaling:
    """Multipliers relative to a model of width `base_width`, at which all of them are 1.

    Sources: Yang et al. (2022), table 8, for Adam; Yang, Simon and Bernstein (2023) for orthogonal updates, whose scale
    sqrt(max(1, rows/cols)) already moves with the shape. With m = width / base_width:

      role        learning rate (Adam)   learning rate (Muon)   initial standard deviation
      matrix      1 / m                  1                      1 / sqrt(m) where it is drawn from a normal
      head        1 / m                  1                      1 / m
      gate        1 / m if its input is the residual stream     1
      embedding   1                      1                      1
      scalar      1                      1                      1

    A tied embedding serves as head too; it keeps its own rates, and the logits are multiplied by `logit_multiplier`.
    Orthogonal initial values have the right norm at every width already. Raises ValueError when base_width < 1.
    """

    def __init__(self, *, base_width: int) -> None:
        if base_width < 1:
            raise ValueError(f"mup base_width={base_width} must be at least 1")
        self.base_width = base_width

    def ratio(self, width: int) -> float:
        """base_width / width."""
        return self.base_width / width

    def lr(self, role: str, shape: tuple[int, ...], width: int, kind: Kind) -> float:
        """Multiplier on the learning rate of a parameter of this role and shape in a model of this width."""
        reads_stream = len(shape) == 2 and shape[-1] == width
        if kind == "adam" and (role in ("matrix", "head") or (role == "gate" and reads_stream)):
            return self.ratio(width)
        return 1.0

    def initial(self, role: str, width: int, orthogonal: bool) -> float:
        """Multiplier on the initial values of a parameter."""
        if role == "head":
            return self.ratio(width)
        return self.ratio(width) ** 0.5 if role == "matrix" and not orthogonal else 1.0

    def logit_multiplier(self, width: int) -> float:
        """Multiplier on the logits of a model whose embedding is its head too, before the softcap."""
        return self.ratio(width)


def width_of(model: nn.Module) -> int:
    """Width of the residual stream: the last dimension of the embedding. ValueError when there is not one width."""
    roles = parameter_roles(model)
    widths = {p.shape[-1] for name, p in model.named_parameters() if roles[name] == "embedding"}
    if len(widths) != 1:
        raise ValueError(f"muP needs one width, that of the embedding; this model has {sorted(widths) or 'none'}")
    return int(widths.pop())


@torch.no_grad()
def scale_initial_values(model: nn.Module, scaling: WidthScaling, *, orthogonal: bool) -> None:
    """Multiply the initial values in place, right after they were drawn: every parameter keeps its own random stream,
    so no other parameter's value moves. orthogonal: whether matrices were drawn as orthogonal ones."""
    width, roles = width_of(model), parameter_roles(model)
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            parameter.mul_(scaling.initial(roles[name], width, orthogonal))

"""MLPs whose activation has two quadratic branches, with constants or learned."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pgolf.model.mlp import Mlp, hidden_width, squared
from pgolf.model.roles import Init, Linear, constant, orthogonal


class XIELU(Mlp):
    """W_down f(W_up n) with f(h) = a+ h^2 + b+ h where h > 0, and a- h^2 + b- h elsewhere (PR 1648).

    f'(h) = 2 a h + b on either side: below zero, with a- and b- above it, f falls before it rises. With b = 0, a+ = 1
    and a- = slope^2 it is the squared leaky ReLU. Each constant is one number for all layers or a table over depth:
    layer i of L reads entry round(i (n - 1) / (L - 1)) of n, which is entry i where n = L. trainable: the four are
    learned from there (`xielu` [4], in the order of the arguments); published, they were fixed after a loop of training
    and pasting the means that it printed. Training and scoring compute the same function.

    Raises ValueError for an empty table.
    """

    xielu: nn.Parameter

    def __init__(
        self,
        dim: int,
        layer: int,
        num_layers: int,
        *,
        multiple: float,
        alpha_positive: float | list[float],
        alpha_negative: float | list[float],
        beta_positive: float | list[float],
        beta_negative: float | list[float],
        trainable: bool = False,
    ) -> None:
        super().__init__(dim, layer, num_layers)
        tables = {"alpha_positive": alpha_positive, "alpha_negative": alpha_negative}
        tables |= {"beta_positive": beta_positive, "beta_negative": beta_negative}
        self.values = tuple(at_depth(name, table, layer, num_layers) for name, table in tables.items())
        self.trainable = trainable
        hidden = hidden_width(dim, multiple)
        self.fc = Linear(dim, hidden, "matrix", orthogonal())
        self.proj = Linear(hidden, dim, "matrix", constant(0.0))
        if trainable:
            self.declare("xielu", (4,), "scalar", _given(self.values))

    def hidden(self, n: Tensor) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden]."""
        h = self.fc(n)
        a, a_below, b, b_below = self.xielu.to(h.dtype).unbind() if self.trainable else self.values
        return torch.where(h > 0, h * (a * h + b), h * (a_below * h + b_below))


class ASQU(Mlp):
    """W_down f(W_up n) with f(h)_c = h^2 where h > 0, and s_c h^2 elsewhere: every hidden channel learns the scale s_c
    of its negative branch (the idea of PR 1247).

    negative_scale: where all of them (`asqu` [hidden]) start; 0.25 starts as the squared leaky ReLU of slope 0.5.
    """

    asqu: nn.Parameter

    def __init__(self, dim: int, layer: int, num_layers: int, *, multiple: float, negative_scale: float) -> None:
        super().__init__(dim, layer, num_layers)
        hidden = hidden_width(dim, multiple)
        self.fc = Linear(dim, hidden, "matrix", orthogonal())
        self.proj = Linear(hidden, dim, "matrix", constant(0.0))
        self.declare("asqu", (hidden,), "scalar", constant(negative_scale))

    def hidden(self, n: Tensor) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden]."""
        h = self.fc(n)
        return squared(h.clamp_min(0.0)) + self.asqu.to(h.dtype) * squared(h.clamp_max(0.0))


def at_depth(name: str, table: float | Sequence[float], layer: int, num_layers: int) -> float:
    """The value of layer `layer` of `num_layers`: the number itself, or the entry of the table at the same relative
    depth. ValueError for an empty table."""
    if isinstance(table, (int, float)):
        return float(table)
    if not table:
        raise ValueError(f"mlp.{name} is an empty table: give a number, or a value for each layer")
    at = layer / (num_layers - 1) if num_layers > 1 else 0.0
    return float(table[round(at * (len(table) - 1))])


def _given(values: Sequence[float]) -> Init:
    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.copy_(torch.tensor(values))

    return fill

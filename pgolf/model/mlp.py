"""The feed-forward half of a block."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from pgolf.model.context import Context
from pgolf.model.roles import Linear, Part, constant, orthogonal


def hidden_width(dim: int, multiple: float) -> int:
    """floor(multiple * dim). ValueError when that is no unit."""
    hidden = int(multiple * dim)  # rounded down, as in the published scripts
    if hidden < 1:
        raise ValueError(f"mlp.multiple={multiple} leaves no hidden unit at model.dim={dim}")
    return hidden


def squared(x: Tensor) -> Tensor:
    """x^2, in the dtype of x: on a GPU autocast would take `square` for a power, and make it one of fp32."""
    return x * x if x.is_cuda else x.square()


class Mlp(Part):
    """What all have: a hidden layer, and the matrix `proj` from it back to the stream.

    dim: width of the stream; layer of num_layers: the block that it belongs to. dropout: what happens to the hidden
    layer in training, None: nothing (pgolf.model.dropout).
    """

    proj: Linear
    dropout: Callable[[Tensor], Tensor] | None

    def __init__(self, dim: int, layer: int, num_layers: int) -> None:
        super().__init__()
        self.dropout = None

    @property
    def fusable(self) -> bool:
        """Whether the fused kernel computes this (pgolf.kernels.fused.mlp)."""
        return False

    def hidden(self, n: Tensor) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden]."""
        raise NotImplementedError(f"{type(self).__name__} has no hidden layer")

    def features(self, n: Tensor, context: Context) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden], what `proj` reads."""
        return self.dropped(self.hidden(n))

    def dropped(self, hidden: Tensor) -> Tensor:
        """The hidden layer [B, T, hidden] after what training leaves out of it."""
        return self.dropout(hidden) if self.dropout is not None and self.training else hidden

    def forward(self, n: Tensor, slot: int, context: Context) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, dim]."""
        return context.adapt(slot, "mlp", n, self.proj(self.features(n, context)))


class LeakyReLUSquared(Mlp):
    """W_down (leaky_relu(W_up n, slope))^2, hidden width = floor(multiple * dim). slope=0 is ReLU^2 (Primer); 0.5
    from PR 1394 on."""

    def __init__(self, dim: int, layer: int, num_layers: int, *, multiple: float, slope: float) -> None:
        super().__init__(dim, layer, num_layers)
        hidden = hidden_width(dim, multiple)
        self.slope = slope
        self.fc = Linear(dim, hidden, "matrix", orthogonal())
        self.proj = Linear(hidden, dim, "matrix", constant(0.0))

    def hidden(self, n: Tensor) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden]."""
        return squared(F.leaky_relu(self.fc(n), self.slope))

    def forward(self, n: Tensor, slot: int, context: Context) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, dim]."""
        if context.fused.mlp is None or not self.fusable:
            return super().forward(n, slot, context)
        return context.adapt(slot, "mlp", n, context.fused.mlp(n, self.fc.weight, self.proj.weight, self.slope))

    @property
    def fusable(self) -> bool:
        """Where there are two whole matrices, with nothing but the activation in between."""
        whole = type(self.fc) is Linear and type(self.proj) is Linear
        return whole and self.dropout is None and type(self) is LeakyReLUSquared


class SwiGLU(Mlp):
    """W_down (silu(W_gate n) * W_up n), hidden width = floor(multiple * dim) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, layer: int, num_layers: int, *, multiple: float) -> None:
        super().__init__(dim, layer, num_layers)
        hidden = hidden_width(dim, multiple)
        self.fc = Linear(dim, hidden, "matrix", orthogonal())
        self.fc_gate = Linear(dim, hidden, "matrix", orthogonal())
        self.proj = Linear(hidden, dim, "matrix", constant(0.0))

    def hidden(self, n: Tensor) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, hidden]."""
        return F.silu(self.fc_gate(n)) * self.fc(n)

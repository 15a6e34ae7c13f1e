"""Linear maps that read one bit of every element of their input (XNOR-Net: arXiv 1603.05279)."""

import torch
from torch import Tensor, nn

from pgolf.model.basis import Replacing
from pgolf.model.roles import Init, Linear


class SignLinear(Linear):
    """y = b W^T with b = sign(x) mean|x|, the mean over the elements of a token, sign(0) = 1; the gradient goes through
    as if b were x (straight-through). Means are fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        with torch.no_grad():
            scale = x.float().abs().mean(-1, keepdim=True).to(x.dtype)
            change = torch.where(x >= 0, scale, -scale) - x
        return super().forward(x + change)


class Xnor(Replacing):
    """The linear maps that match read signs (non-record XNOR-Net of 2026-04-05, mode 2: all but the map down from the
    hidden layer, whose input stays as it is; with that one too, mode 1, it stopped at 2.0 bits per byte).

    Weights stay as they are here; quant=binary makes those binary too, in training and in the artifact: products of
    signs, as published.
    """

    def make(self, in_features: int, out_features: int, begun: Init) -> nn.Module:
        """The same matrix behind signs."""
        return SignLinear(in_features, out_features, "matrix", begun)

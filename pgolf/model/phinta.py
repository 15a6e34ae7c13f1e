"""PhiNTA (PR 2059): a frozen random map and a trained thin one, added to the residual stream."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pgolf.model.basis import FrozenPlusLowRank
from pgolf.model.phi import PHI
from pgolf.model.roles import Init, constant, normal

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

UNIFORM, DOWN_STD, MIN_NORM = 0.05, 0.02, 1e-6  # range of W's draws, deviation of A's, floor of a row's norm


class PhiNTA(FrozenPlusLowRank):
    """x + phi(x) with phi(x) = x W^T + (x A) B.

    W [dim, dim]: uniform draws whose rows are scaled to length `init_scale`; it is not made orthogonal, whatever its
    name says. A [dim, r] starts at N(0, 0.02^2), B [r, dim] at zero, and both are matrices to optimisers (published,
    those before the head were in no optimiser; kept transposed here, so that Muon's scale for long matrices is B's and
    not A's). rank=None: round(dim / phi). W is regenerated (published, it was stored with the weights).

    Published as an identity at the start, which it is not: x + x W^T is another function than x. basis_gain: the
    initial value of a learned factor of x W^T; 0 is the identity that was claimed, None the published factor of 1.
    """

    basis_gain: nn.Parameter

    def __init__(self, dim: int, *, rank: int | None, init_scale: float, basis_gain: float | None) -> None:
        rank = max(1, round(dim / PHI)) if rank is None else rank
        if not 1 <= rank <= dim:
            raise ValueError(f"phinta.rank={rank} must lie between 1 and model.dim={dim}, or be null for dim / phi")
        super().__init__(dim, dim, rank, unit_rows(init_scale), normal(DOWN_STD), constant(0.0))
        self.scaled = basis_gain is not None
        if basis_gain is not None:
            self.declare("basis_gain", (1,), "scalar", constant(basis_gain))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., dim]."""
        frozen = linear(x, self.basis.to(x.dtype))
        if self.scaled:
            frozen = self.basis_gain.to(x.dtype) * frozen
        return x + frozen + self.up(self.down(x))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Take all initial values from one generator in the order of the published script: W's draws, then A's."""
        self.fixed["basis"](self.basis, generator)
        dim, rank = self.down.weight.shape[1], self.down.weight.shape[0]
        self.down.weight.copy_(torch.randn(dim, rank, generator=generator).T * DOWN_STD)
        self.up.weight.zero_()


def unit_rows(length: float) -> Init:
    """Uniform draws, every row scaled to `length`."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.copy_((torch.rand(tensor.shape, generator=generator) - 0.5) * (2 * UNIFORM))
        tensor.div_(tensor.norm(dim=1, keepdim=True).clamp_min(MIN_NORM)).mul_(length)

    return fill


class _Placed:
    """rank, init_scale, basis_gain: of every adapter, see `PhiNTA`."""

    def __init__(self, *, rank: int | None, init_scale: float, basis_gain: float | None = None) -> None:
        self.rank, self.init_scale, self.basis_gain = rank, init_scale, basis_gain

    def make(self, dim: int) -> PhiNTA:
        """One adapter. ValueError for a rank that the width does not hold."""
        return PhiNTA(dim, rank=self.rank, init_scale=self.init_scale, basis_gain=self.basis_gain)


class PreHead(_Placed):
    """One adapter after the final norm: the logits, and adapters of the head, read what it gives."""

    def fit(self, model: "GPT") -> None:
        """Give the model its adapter."""
        model.phinta = self.make(model.dim)


class PerBlock(_Placed):
    """One adapter as the last statement of every block, which every visit of the block passes; where a pass has two
    lanes, each goes through it."""

    def fit(self, model: "GPT") -> None:
        """Give every block its adapter."""
        for block in model.blocks:
            block.phinta = self.make(model.dim)

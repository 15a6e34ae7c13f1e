"""Mixing each token with those before it: three mechanisms that were published under one name, and a running mean."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pgolf.kernels.packing import Packing
from pgolf.model.bigram import piece_starts
from pgolf.model.context import Context
from pgolf.model.fitting import on_one_stream
from pgolf.model.roles import Linear, Part, constant

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT

Within = Literal["document", "row"]


class SmearGate(Part):
    """x_t = e_t + lambda sigmoid(w e_t[:width]) e_{t-1} on the raw embeddings e; x_0 = e_0 (PR 1667).

    smear_gate.weight [1, width] and smear_lambda [1] start at 0: at first nothing is mixed. bos_id: the token that
    takes nothing from before it, so that a document does not read the end of its neighbour in a packed row (PR 1851);
    None: every token does, as first published. Raises ValueError when the gate is wider than the model.
    """

    smear_lambda: nn.Parameter
    after_norm = False

    def __init__(self, dim: int, *, width: int, bos_id: int | None) -> None:
        super().__init__()
        if not 0 < width <= dim:
            raise ValueError(f"smear width={width} must lie between 1 and model.dim={dim}")
        self.width, self.bos_id = width, bos_id
        self.smear_gate = Linear(width, 1, "gate", constant(0.0))
        self.declare("smear_lambda", (1,), "scalar", constant(0.0))

    def forward(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """embedded [B, T, dim], tokens int64 [B, T] -> [B, T, dim]."""
        gate = self.gates(embedded, tokens)[..., None]
        mixed = embedded[:, 1:] + gate[:, 1:] * embedded[:, :-1]
        return torch.cat((embedded[:, :1], mixed), dim=1)

    def gates(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """How much each token takes of the one before it, [B, T]; that of the first is not read."""
        gate = torch.sigmoid(self.smear_gate(embedded[..., : self.width]))
        gate = self.smear_lambda.to(gate.dtype) * gate
        if self.bos_id is not None:
            gate = gate * (tokens != self.bos_id)[..., None].to(gate.dtype)
        return gate[..., 0]


class ConvexSmear(Part):
    """x_t = (1 - s) e_t + s e_{t-1} for each dimension, with e_{-1} = 0.

    weighs: whose weight sigmoid(smear_gamma) is: with "current" s = 1 - sigmoid(smear_gamma) (2026-03-19, the fork of
    PR 4 by keshav55), with "previous" s = sigmoid(smear_gamma) (2026-03-20 to 03-31). smear_gamma [dim] starts at
    `start`; 0 is half of each, so a new gate is no identity. after_norm: on the normed embedding, from which blocks and
    their mixes then read it, or before the norm (2026-03-19). bos_id: the token whose predecessor counts as zero, as
    that of a row's first token does; None: no such token, as published.
    """

    smear_gamma: nn.Parameter

    def __init__(
        self, dim: int, *, weighs: Literal["current", "previous"], start: float, after_norm: bool, bos_id: int | None
    ) -> None:
        super().__init__()
        self.weighs, self.after_norm, self.bos_id = weighs, after_norm, bos_id
        self.declare("smear_gamma", (dim,), "scalar", constant(start))

    def forward(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """embedded [B, T, dim], tokens int64 [B, T] -> [B, T, dim]."""
        share = torch.sigmoid(self.smear_gamma).to(embedded.dtype)
        before = previous(embedded, tokens, self.bos_id)
        now, then = (embedded, before) if self.weighs == "current" else (before, embedded)
        return then + share * (now - then)


class MlpSmear(nn.Module):
    """What an MLP reads: share n_t + (1 - share) n_{t-1} with n_{-1} = 0, fixed (a fork of PR 4 by taka6745)."""

    def __init__(self, share: float, within: Within) -> None:
        super().__init__()
        self.share, self.within = share, within

    def forward(self, n: Tensor, context: Context) -> Tensor:
        """n: normed input of the MLP [B, T, dim] -> [B, T, dim]."""
        before = torch.cat((torch.zeros_like(n[:, :1]), n[:, :-1]), dim=1)
        if self.within == "document":
            before = before * ~piece_starts(n.shape[1], context.packing, n.device)[:, None]
        return torch.lerp(before, n, self.share)


class MlpSmears:
    """`MlpSmear` in every block. share: of the token itself, from 0 to 1. within: "document": no document of a packed
    row reads the states of its neighbour; "row": all do, as published. ValueError for another share."""

    def __init__(self, *, share: float, within: Within) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"mlp_smear.share={share} must lie between 0 and 1")
        self.share, self.within = share, within

    def fit(self, model: "GPT") -> None:
        """Put one before the MLP of every block."""
        for block in model.blocks:
            block.mlp_smear = MlpSmear(self.share, self.within)


class RunningMean(Part):
    """x_t + tanh(smear_gamma) (mean of x_0..x_t - x_t), smear_gamma [dim] from 0: at first nothing is mixed (the binary
    networks of 2026-03). In a packed row the mean is over the token's own document."""

    smear_gamma: nn.Parameter

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.declare("smear_gamma", (dim,), "scalar", constant(0.0))

    def forward(self, u: Tensor, x: Tensor, context: Context) -> Tensor:
        """x: what leaves the block [B, T, dim] -> [B, T, dim]; what entered it, u, is not read."""
        share = torch.tanh(self.smear_gamma).to(x.dtype)
        return torch.lerp(x, running_mean(x, context.packing), share)


class RunningMeans:
    """`RunningMean` behind every block that is not on lanes alone; on lanes it does nothing."""

    def fit(self, model: "GPT") -> None:
        """Put one behind every such block. ValueError when there is none."""
        for block in on_one_stream(model, "running_mean"):
            block.ends["running_mean"] = RunningMean(model.dim)


def previous(x: Tensor, tokens: Tensor, bos_id: int | None) -> Tensor:
    """x [B, T, n] one place later, zero at the first place and, unless bos_id is None, where `tokens` has that."""
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
    return before if bos_id is None else before * (tokens != bos_id)[..., None].to(x.dtype)


def running_mean(x: Tensor, packing: Packing | None) -> Tensor:
    """x [B, T, n] -> the mean of x_s, s <= t, over t's own document, in fp32 where x is shorter.

    Sums over 1, 2, 4, ... places are added up, each within its document, so that not even the rounding of a sum knows
    another document.
    """
    length = x.shape[1]
    total = x.to(torch.promote_types(x.dtype, torch.float32))
    places = torch.arange(length, device=x.device)
    ids = torch.zeros_like(places) if packing is None else packing.document_ids(length)
    counted = torch.ones_like(places)
    span = 1
    while span < length:
        same = torch.cat((ids.new_zeros(span, dtype=torch.bool), ids[span:] == ids[:-span]))
        earlier = torch.cat((torch.zeros_like(total[:, :span]), total[:, :-span]), dim=1)
        total = total + torch.where(same[:, None], earlier, 0.0)
        counted = counted + torch.where(same, torch.cat((counted.new_zeros(span), counted[:-span])), 0)
        span *= 2
    return (total / counted[:, None]).to(x.dtype)

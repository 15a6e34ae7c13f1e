"""A mixture of experts that are all evaluated, weighted by a router (soft-dense, jzmyres' fork)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgolf.distributed import Group
from pgolf.model.context import Context, Walk
from pgolf.model.control import Controlled
from pgolf.model.mlp import Mlp, hidden_width
from pgolf.model.roles import Linear, Part, constant, normal, orthogonal

KEPT = "experts_seen"  # in a walk: sums of the probabilities [experts] and, behind them, the number of tokens
GATE_BIAS = 5.0  # of the router's gates at first, which is OPEN
OPEN = 1.0 / (1.0 + math.exp(-GATE_BIAS))
LEAST_SHARE, MOST_SPREAD = 0.6, 0.20  # of an even share; coefficient of variation of the shares


class Router(Part):
    """r = softmax(W n + b) * sigmoid(G n + 5), not normalised again: tokens may use little of all experts.

    W [experts, dim] starts at N(0, 0.01^2), G [experts, dim] at 0, so that every gate starts at sigmoid(5) = 0.993. b,
    `router_bias` [experts], has no gradient: the controller of `SoftDense` moves it. frozen_gate: the gates stay there,
    and are no parameters: the router then varies with n through its softmax alone.
    """

    router_bias: nn.Parameter
    gate_bias: nn.Parameter

    def __init__(self, dim: int, num_experts: int, frozen_gate: bool = False) -> None:
        super().__init__()
        self.frozen_gate = frozen_gate
        self.route = Linear(dim, num_experts, "gate", normal(0.01))
        self.declare("router_bias", (num_experts,), "scalar", constant(0.0))
        if not frozen_gate:
            self.gate = Linear(dim, num_experts, "gate", constant(0.0))
            self.declare("gate_bias", (num_experts,), "scalar", constant(GATE_BIAS))

    def forward(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """n [B, T, dim] -> the probabilities and the weights r, both fp32 [B, T, experts]."""
        chances = (self.route(n).float() + self.router_bias.detach().float()).softmax(-1)
        if self.frozen_gate:
            return chances, chances * OPEN
        return chances, chances * torch.sigmoid(self.gate(n).float() + self.gate_bias.float())


class SoftDense(Mlp, Controlled):
    """sum over e of r_e W_down,e (leaky_relu(W_up,e n, slope))^2, with all experts evaluated for every token and r from
    `Router`.

    The matrices of all experts are one `fc` and one `proj`, of hidden width floor(multiple * dim / num_experts) each,
    so multiple = 4 has the matrices of a plain MLP of 4 (and Muon makes one direction of them). With s_e the mean
    probability of an expert over the tokens of a micro-batch, training adds these costs, for every visit of a block:

      balance    * mean over e of (s_e - 1/E)^2
      min_share  * mean over e of max(0, 0.6/E - s_e)^2
      max_spread * max(0, std(s)/mean(s) - 0.20)^2

    and after every optimiser step the bias moves towards an even share: b_e += bias_rate (1/E - s_e), with s_e over the
    tokens, visits and ranks of the step. The source states the hinges and not their coefficients, nor whether the gate
    is one for each expert, as here, or one for all.

    inject: the initial value of a learned g: experts read n + g x0, with x0 the normed embedding, while the router
    reads n (27d of the source's sweep, which collapsed at depth there); None: experts read n. frozen_gate: see
    `Router`. Raises ValueError for fewer than two experts, a negative cost or rate, or experts without a hidden unit.
    """

    inject: nn.Parameter
    seen: Tensor

    def __init__(
        self,
        dim: int,
        layer: int,
        num_layers: int,
        *,
        multiple: float,
        slope: float,
        num_experts: int,
        balance: float,
        min_share: float,
        max_spread: float,
        bias_rate: float,
        inject: float | None = None,
        frozen_gate: bool = False,
    ) -> None:
        super().__init__(dim, layer, num_layers)
        if num_experts < 2:
            raise ValueError(f"mlp.num_experts={num_experts} must be at least 2")
        for name, value in {
            "balance": balance,
            "min_share": min_share,
            "max_spread": max_spread,
            "bias_rate": bias_rate,
        }.items():
            if value < 0:
                raise ValueError(f"mlp.{name}={value} must not be negative")
        self.slope, self.num_experts, self.width = slope, num_experts, hidden_width(dim, multiple) // num_experts
        if self.width < 1:
            raise ValueError(f"mlp.multiple={multiple} leaves no hidden unit to each of mlp.num_experts={num_experts}")
        self.balance, self.min_share, self.max_spread = balance, min_share, max_spread
        self.bias_rate, self.injects = bias_rate, inject is not None
        self.router = Router(dim, num_experts, frozen_gate)
        self.fc = Linear(dim, num_experts * self.width, "matrix", orthogonal())
        self.proj = Linear(num_experts * self.width, dim, "matrix", constant(0.0))
        if inject is not None:
            self.declare("inject", (1,), "scalar", constant(inject))
        # of a step: see KEPT
        self.register_buffer("seen", torch.zeros(num_experts + 1), persistent=False)

    def features(self, n: Tensor, context: Context) -> Tensor:
        """n: normed input [B, T, dim] -> [B, T, experts * width], each expert's part times its weight."""
        chances, weights = self.router(n)
        if self.training and context.walk is not None:
            self._leave(chances, context.walk)
        h = F.leaky_relu(self.fc(self._expert_input(n, context)), self.slope).square()
        weighted = h.unflatten(-1, (self.num_experts, self.width)) * weights[..., None].to(h.dtype)
        return self.dropped(weighted.flatten(-2))

    def steered(self) -> list[nn.Parameter]:
        """The bias of the router."""
        return [self.router.router_bias]

    def begin_step(self, step: int) -> None:
        """Forget what was seen."""
        self.seen.zero_()

    @torch.no_grad()
    def observe(self, walk: Walk) -> None:
        """Add what the visits of a forward have counted; nothing in evaluation."""
        if (seen := walk.kept.get((KEPT, self.index))) is not None:
            self.seen += seen

    @torch.no_grad()
    def end_step(self, group: Group) -> None:
        """Move the bias towards an even share."""
        group.sum_(self.seen)
        shares = self.seen[:-1] / self.seen[-1].clamp_min(1.0)
        bias = self.router.router_bias
        bias.add_(self.bias_rate * (1.0 / self.num_experts - shares))

    def _expert_input(self, n: Tensor, context: Context) -> Tensor:
        if not self.injects:
            return n
        if context.walk is None or ("x0", 0) not in context.walk.kept:
            raise RuntimeError("mlp.inject reads the normed embedding, which the model's forward keeps in its walk")
        return n + self.inject.to(n.dtype) * context.walk.kept["x0", 0]

    def _leave(self, chances: Tensor, walk: Walk) -> None:
        """What the controller counts, and the costs for the training loss."""
        rows = chances.flatten(0, -2)
        with torch.no_grad():
            seen = torch.cat((rows.sum(0), rows.new_full((1,), len(rows))))
        earlier = walk.kept.get((KEPT, self.index))
        walk.kept[KEPT, self.index] = seen if earlier is None else earlier + seen
        shares, even = rows.mean(0), 1.0 / self.num_experts
        costs = {
            "balance": self.balance * (shares - even).square().mean(),
            "min_share": self.min_share * F.relu(LEAST_SHARE * even - shares).square().mean(),
            "max_spread": self.max_spread * F.relu(shares.std(correction=0) / even - MOST_SPREAD).square(),
        }
        for name, cost in costs.items():
            walk.charge(f"experts_{name}", cost)

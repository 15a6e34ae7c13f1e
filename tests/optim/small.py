"""A small model with every role, trained by every optimiser over any number of ranks. Also a program: see `main`."""

import copy
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pgolf.app.machine import leave
from pgolf.distributed import Group, join
from pgolf.model.roles import Linear, Part, constant, initialise, normal
from pgolf.optim import banks, muon
from pgolf.optim.adam import AdamW
from pgolf.optim.clip import GlobalNorm, LocalNorm, LyapunovNorm
from pgolf.optim.decay import CautiousDecay
from pgolf.optim.exchange import GradientExchange
from pgolf.optim.muon import Muon
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.spectral import SpectralCap
from pgolf.optim.transforms import DiagonalMousse, NorMuon, SignedPower, UnitRows

VOCABULARY, DIM, HIDDEN, ROWS, STEPS = 16, 24, 48, 8, 12
STOCK = {"nesterov": True, "row_normalise": False, "newton_schulz_steps": 5, "coefficients": "stock"}
POLAR = {"nesterov": True, "row_normalise": True, "newton_schulz_steps": 5, "coefficients": "polar_express"}
VARIANTS = {
    "stock": STOCK,
    "plain momentum": {**STOCK, "nesterov": False},
    "polar express": POLAR,
    "grad power": {**POLAR, "gradient": SignedPower(exponent=0.9)},
    "mousse": {**POLAR, "precondition": DiagonalMousse()},
    "normuon": {**POLAR, "rescale": NorMuon()},
    "unit rows": {**POLAR, "rescale": UnitRows()},
    "cautious decay": {**POLAR, "decay": CautiousDecay()},
    "spectral cap": {**POLAR, "cap": SpectralCap(cap=0.9, iterations=2)},
    "no reduce-scatter": POLAR,
    "adaptive clip": POLAR,
}
CLIPS = {"adaptive clip": lambda: LyapunovNorm(norm=1.0, threshold=0.0)}


class Net(Part):
    """Residual layers of three shapes, more matrices of each than two ranks share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.declare("embedding", (VOCABULARY, DIM), "embedding", normal(0.3))
        self.declare("gain", (DIM,), "scalar", constant(1.0))
        self.declare("gate", (1, DIM), "gate", normal(0.1))
        self.square = nn.ModuleList(Linear(DIM, DIM, "matrix", normal(0.2)) for _ in range(3))
        self.up = nn.ModuleList(Linear(DIM, HIDDEN, "matrix", normal(0.2)) for _ in range(5))
        self.down = nn.ModuleList(Linear(HIDDEN, DIM, "matrix", normal(0.2)) for _ in range(5))
        self.head = Linear(DIM, VOCABULARY, "head", normal(0.2))
        initialise(self, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B] -> logits [B, VOCABULARY]."""
        x = self.embedding[tokens]
        for layer in self.square:
            x = x + torch.tanh(layer(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.head(x * self.gain * torch.sigmoid(x @ self.gate.T))


def optimisers(model: nn.Module, variant: str = "polar express", **changes) -> RoleOptimizers:
    adam = partial(AdamW, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05)
    matrix = partial(Muon, lr=0.02, momentum=0.95, weight_decay=0.1, **VARIANTS[variant])
    roles = {"matrix": matrix, "embedding": adam, "scalar": adam, "head": adam, "gate": adam}
    return RoleOptimizers(model, **{**roles, **changes})


def backward(model: nn.Module, step: int, group: Group) -> None:
    """Gradients of this rank's share of the step's rows."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (2, ROWS), generator=generator)
    share = slice(group.rank * ROWS // group.world_size, (group.rank + 1) * ROWS // group.world_size)
    torch.nn.functional.cross_entropy(model(tokens[0, share]), tokens[1, share]).backward()


def train(variant: str, group: Group, until: int = STEPS, start: dict | None = None, clip=None) -> dict:
    """Weights, norms and optimiser state after `until` steps; `start` continues from such a result."""
    model = Net()
    made = optimisers(model, variant)
    remarks = made.shard(group)
    clip = clip or CLIPS.get(variant, lambda: GlobalNorm(norm=1.0))()
    begun, norms = 0, []
    if start is not None:
        begun, norms = start["steps"], list(start["norms"])
        model.load_state_dict(start["weights"])
        made.load_state_dict(copy.deepcopy(start["optimisers"]))  # torch's Adam would go on in the given tensors
        clip.load_state_dict(start["clip"])
    exchange = GradientExchange(made, group, clip)
    for step in range(begun, until):
        made.zero_grad()
        backward(model, step, group)
        made.schedule(1.0 - step / (2 * STEPS), 0.85 + 0.005 * step, 1.0 - step / STEPS)
        norms.append(float(exchange.average()))
        made.step()
    return {
        "steps": until,
        "norms": norms,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "optimisers": copy.deepcopy(made.state_dict()),
        "clip": clip.state_dict(),
        "remarks": remarks,
    }


def main(out: Path, variants: list[str]) -> None:
    """On every rank: train each variant, save and continue half way; the leader writes the results to `out`."""
    torch.set_num_threads(1)
    group, found = join(), {}
    for variant in variants:
        if variant == "no reduce-scatter":
            muon.can_reduce_scatter = lambda group: False
        half = train(variant, group, STEPS // 2)
        found[variant] = {"half": half, "whole": train(variant, group), "continued": train(variant, group, start=half)}
        muon.can_reduce_scatter = banks.can_reduce_scatter
    found["local clip"] = {"whole": train("stock", group, 1, clip=LocalNorm(norm=0.01))}
    if group.leads:
        torch.save(found, out)
    group.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
    leave(0)

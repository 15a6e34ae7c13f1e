"""Parameters that know their role and their initial value.

The module that makes a parameter says what it is; optimisers, quantisation and precision select by role.
Each parameter draws from its own random stream, derived from (seed, full name), so that adding a module
moves no other parameter's initial value.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Role = Literal["matrix", "embedding", "head", "scalar", "gate"]
ROLES: tuple[str, ...] = get_args(Role)
Init = Callable[[Tensor, torch.Generator], None]


def constant(value: float) -> Init:
    """Every element starts at `value`."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.fill_(value)

    return fill


def normal(std: float) -> Init:
    """Elements are drawn from N(0, std^2)."""

    def fill(tensor: Tensor, generator: torch.Generator) -> None:
        tensor.normal_(0.0, std, generator=generator)

    return fill


@dataclass(frozen=True)
class Orthogonal:
    """A (semi-)orthogonal matrix times `gain`; a kind of its own, because its norm is right at every width."""

    gain: float = 1.0

    def __call__(self, tensor: Tensor, generator: torch.Generator) -> None:
        """Fill a matrix in place."""
        nn.init.orthogonal_(tensor, self.gain, generator=generator)


def orthogonal(gain: float = 1.0) -> Init:
    """A (semi-)orthogonal matrix times `gain`."""
    return Orthogonal(gain)


class Part(nn.Module):
    """A module that declares its parameters with a role and an initial value."""

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[str, Role] = {}
        self.inits: dict[str, Init] = {}
        self.fixed: dict[str, Init] = {}

    def declare(self, name: str, shape: tuple[int, ...], role: Role, init: Init) -> nn.Parameter:
        """Register parameter `name` (fp32, uninitialised until `initialise`)."""
        parameter = nn.Parameter(torch.empty(shape))
        self.register_parameter(name, parameter)
        self.roles[name] = role
        self.inits[name] = init
        return parameter

    def withdraw(self, name: str) -> None:
        """Take a declared parameter away again."""
        delattr(self, name)
        del self.roles[name], self.inits[name]

    def declare_fixed(self, name: str, shape: tuple[int, ...], init: Init) -> Tensor:
        """Register a frozen fp32 tensor that is drawn again from (seed, its full name) wherever the model is made: in
        no state dict, in no artifact, of no optimiser."""
        self.register_buffer(name, torch.empty(shape), persistent=False)
        self.fixed[name] = init
        return self.get_buffer(name)


class Linear(Part):
    """y = x W^T without bias; W [out_features, in_features] is cast to the dtype of x."""

    weight: nn.Parameter

    def __init__(self, in_features: int, out_features: int, role: Role, init: Init) -> None:
        super().__init__()
        self.declare("weight", (out_features, in_features), role, init)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        return nn.functional.linear(x, self.weight.to(x.dtype))


def declared(model: nn.Module) -> dict[str, tuple[Part, str]]:
    """The part of every parameter and its name there, by full name. Raises ValueError for one without a role."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, Part):
            for local in module.roles:
                found[f"{prefix}.{local}" if prefix else local] = (module, local)
    undeclared = [name for name, _ in model.named_parameters() if name not in found]
    if undeclared:
        raise ValueError(f"parameters without a role: {', '.join(undeclared)}; make them with Part.declare")
    return found


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """Role of every parameter by its full name. Raises ValueError when one was made without a role."""
    return {name: module.roles[local] for name, (module, local) in declared(model).items()}


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU random generator of its own for (seed, name)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself for a CPU; for a GPU one of its own with the same seed, which draws other numbers."""
    if device.type != "cuda":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed())


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Give every parameter its initial value, and every fixed tensor its only one, each from its own stream. On the
    meta device this does nothing."""
    for name, (module, local) in declared(model).items():
        _draw(getattr(module, local), module.inits[local], seed, name)
    for prefix, module in model.named_modules():
        if isinstance(module, Part):
            for local, init in module.fixed.items():
                _draw(getattr(module, local), init, seed, f"{prefix}.{local}" if prefix else local)


def _draw(target: Tensor, init: Init, seed: int, name: str) -> None:
    if target.is_meta:
        return
    value = torch.empty(target.shape)
    init(value, stream(seed, name))
    target.copy_(value)

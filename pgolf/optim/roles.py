"""One optimiser per parameter role, so that no parameter is ever left without one."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pgolf.model.roles import parameter_roles

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class RoleOptimizers:
    """The optimisers of a model by parameter role.

    Raises ValueError when the model has parameters of a role that has no optimiser (a published record trained with
    gates that were in no optimiser).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        matrix: OptimizerFactory,
        embedding: OptimizerFactory,
        scalar: OptimizerFactory,
        head: OptimizerFactory | None,
        gate: OptimizerFactory | None,
    ) -> None:
        factories = {"matrix": matrix, "embedding": embedding, "scalar": scalar, "head": head, "gate": gate}
        parameters = dict(model.named_parameters())
        self.assignment: dict[str, list[str]] = {}
        for name, role in parameter_roles(model).items():
            self.assignment.setdefault(role, []).append(name)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for role, names in self.assignment.items():
            factory = factories[role]
            if factory is None:
                raise ValueError(
                    f"optim.{role} is absent but the model has {len(names)} parameters of that role ({names[0]}, ...)"
                )
            self.optimizers[role] = factory([parameters[name] for name in names])
        self._base_lrs = {role: [g["lr"] for g in opt.param_groups] for role, opt in self.optimizers.items()}

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.optimizers.values())

    def schedule(self, lr_scale: float, momentum: float | None) -> None:
        """Set every learning rate to its base value times `lr_scale`, and the momentum of those that have one named
        so."""
        for role, optimizer in self.optimizers.items():
            for group, base in zip(optimizer.param_groups, self._base_lrs[role], strict=True):
                group["lr"] = base * lr_scale
                if momentum is not None and "momentum" in group:
                    group["momentum"] = momentum

    def step(self) -> None:
        """Update all parameters."""
        for optimizer in self:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """State of every optimiser by role."""
        return {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[role])

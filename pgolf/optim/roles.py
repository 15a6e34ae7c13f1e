"""One optimiser per parameter role, so that no parameter is ever left without one."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pgolf.distributed import Group
from pgolf.kernels.fused.kernels import Symmetric
from pgolf.model.mup import Kind, WidthScaling, width_of
from pgolf.model.roles import ROLES, parameter_roles
from pgolf.optim.muon import Muon
from pgolf.optim.phi import MatrixRateScale

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]


class NameRule:
    """Parameters whose full name matches `pattern` (as file names do: `*.attn.c_v.weight`) go to the optimiser of
    `role` instead of that of their own role (None: they stay), and there have `options` of their own (lr, ...).

    Raises ValueError for a role that does not exist.
    """

    def __init__(self, *, pattern: str, role: str | None = None, options: Mapping[str, float] | None = None) -> None:
        if role is not None and role not in ROLES:
            raise ValueError(f"role={role} of the rule for {pattern!r} must be one of {', '.join(ROLES)}")
        self.pattern, self.role, self.options = pattern, role, dict(options or {})


class RoleOptimizers:
    """The optimisers of a model by parameter role.

    rules: exceptions by name, of which the first that matches a parameter holds. mup: learning rates relative to a base
    width; the model must have been made with it too. lr_scale: multiplies the learning rate of the matrices. Raises
    ValueError when the model has parameters of a role that has no optimiser (a published record trained with gates that
    were in no optimiser), when a rule matches nothing or names an option that the optimiser lacks.
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
        rules: Sequence[NameRule] = (),
        mup: WidthScaling | None = None,
        lr_scale: MatrixRateScale | None = None,
    ) -> None:
        factories = {"matrix": matrix, "embedding": embedding, "scalar": scalar, "head": head, "gate": gate}
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        roles = parameter_roles(model)
        rule_of = _matching(rules, roles)
        self.assignment: dict[str, list[str]] = {}
        for name, role in roles.items():
            rule = rule_of.get(name)
            self.assignment.setdefault((rule.role if rule else None) or role, []).append(name)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        for role, names in self.assignment.items():
            factory = factories[role]
            if factory is None:
                raise ValueError(
                    f"optim.{role} is absent but the model has {len(names)} parameters of that role ({names[0]}, ...)"
                )
            self.optimizers[role] = _grouped(factory, names, named, rule_of)
        _refuse_half_scaled(model, mup)
        if mup is not None:
            _scale_learning_rates(self.optimizers, named, roles, mup, width_of(model))
        if lr_scale is not None and "matrix" in self.optimizers:
            for group in self.optimizers["matrix"].param_groups:
                group["lr"] *= lr_scale.scale
        self._names = {parameter: name for name, parameter in named.items()}
        self._base = {
            role: [(group["lr"], group.get("weight_decay", 0.0)) for group in optimizer.param_groups]
            for role, optimizer in self.optimizers.items()
        }

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self.optimizers.values())

    @property
    def sharded(self) -> list[Muon]:
        """The optimisers that share their matrices out over ranks once `shard` was called."""
        return [optimizer for optimizer in self if isinstance(optimizer, Muon) and optimizer.is_sharded]

    def shard(self, group: Group) -> list[str]:
        """Share out over the ranks what can be shared; every rank calls it before the first step.

        Gives sentences for people, one for each detour that the back end needs.
        """
        remarks = [optimizer.shard(group) for optimizer in self if isinstance(optimizer, Muon)]
        return sorted({remark for remark in remarks if remark is not None})

    def use(self, symmetric: Symmetric) -> int:
        """Compute symmetric products by this kernel where an optimiser has any; gives for how many matrices."""
        return sum(optimizer.use(symmetric) for optimizer in self if isinstance(optimizer, Muon))

    def schedule(self, lr_scale: float, momentum: float | None, weight_decay_scale: float = 1.0) -> None:
        """Set every learning rate to its base value times `lr_scale`, the momentum of those that have one named so,
        and the weight decay of matrices to its base value times `weight_decay_scale` (the published taper spares the
        others)."""
        for role, optimizer in self.optimizers.items():
            for group, (lr, weight_decay) in zip(optimizer.param_groups, self._base[role], strict=True):
                group["lr"] = lr * lr_scale
                if role == "matrix" and "weight_decay" in group:
                    group["weight_decay"] = weight_decay * weight_decay_scale
                if momentum is not None and "momentum" in group:
                    group["momentum"] = momentum

    def step(self) -> None:
        """Update all parameters; those whose gradients may still be under way last."""
        waiting = self.sharded
        for optimizer in [*(one for one in self if one not in waiting), *waiting]:
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients, those that were exchanged and not used too."""
        for optimizer in self:
            optimizer.zero_grad(set_to_none=True)

    def table(self) -> list[dict[str, Any]]:
        """One row a parameter, in the model's order: its name, shape, role of its optimiser, the optimiser, and all
        options that are numbers, words or pairs (lr, betas, eps, weight_decay, ...)."""
        rows = {}
        for role, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                options = {key: value for key, value in group.items() if key != "params"}
                for parameter in group["params"]:
                    name = self._names[parameter]
                    rows[name] = {
                        "name": name,
                        "shape": tuple(parameter.shape),
                        "group": role,
                        "optimizer": type(optimizer).__name__,
                        **options,
                    }
        return [rows[name] for name in self._names.values()]

    def state_dict(self) -> dict[str, Any]:
        """State of every optimiser by role. When sharded, every rank calls it, and each gets all of it."""
        return {role: optimizer.state_dict() for role, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, to any number of ranks."""
        for role, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[role])


def _matching(rules: Sequence[NameRule], names: Iterable[str]) -> dict[str, NameRule]:
    """The rule of every name that has one."""
    names = list(names)
    for rule in rules:
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            raise ValueError(f"the rule {rule.pattern!r} matches no parameter; there are {names[0]}, {names[-1]}, ...")
    found = {name: next((rule for rule in rules if fnmatchcase(name, rule.pattern)), None) for name in names}
    return {name: rule for name, rule in found.items() if rule is not None}


def _grouped(
    factory: OptimizerFactory, names: list[str], named: Mapping[str, nn.Parameter], rule_of: Mapping[str, NameRule]
) -> torch.optim.Optimizer:
    """An optimiser with one parameter group for the parameters without options of their own, and one a rule."""
    plain = [named[name] for name in names if not (rule_of.get(name) and rule_of[name].options)]
    ruled: dict[NameRule, list[nn.Parameter]] = {}
    for name in names:
        if (rule := rule_of.get(name)) is not None and rule.options:
            ruled.setdefault(rule, []).append(named[name])
    if not ruled:
        return factory(plain)
    groups = [{"params": members, **rule.options} for rule, members in ruled.items()]
    optimizer = factory([*([{"params": plain}] if plain else []), *groups])
    for rule in ruled:
        if unknown := rule.options.keys() - optimizer.defaults.keys():
            takes = ", ".join(optimizer.defaults)
            raise ValueError(
                f"the rule {rule.pattern!r} sets {', '.join(sorted(unknown))}; {type(optimizer).__name__} takes {takes}"
            )
    return optimizer


def _refuse_half_scaled(model: nn.Module, mup: WidthScaling | None) -> None:
    """ValueError unless a model's initial values and logits follow the same width as its learning rates."""
    rates = mup.base_model_dim if mup is not None else None
    values = getattr(model, "base_model_dim", rates)
    if values != rates:
        raise ValueError(
            f"muP scales both or neither: model.mup has base_model_dim={values}, optim.mup has {rates}. Choose "
            "optim/mup=width (or none) for both: model.mup is ${optim.mup} in conf/model, and optim.mup.base_model_dim "
            "sets the width of both"
        )


def _scale_learning_rates(
    optimizers: Mapping[str, torch.optim.Optimizer],
    named: Mapping[str, nn.Parameter],
    roles: Mapping[str, str],
    mup: WidthScaling,
    width: int,
) -> None:
    """Split every parameter group by its muP multiplier, and multiply the learning rates."""
    role_of = {parameter: roles[name] for name, parameter in named.items()}
    for optimizer in optimizers.values():
        kind: Kind = "muon" if isinstance(optimizer, Muon | torch.optim.Muon) else "adam"
        for group in list(optimizer.param_groups):
            by_multiplier: dict[float, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                multiplier = mup.lr(role_of[parameter], tuple(parameter.shape), width, kind)
                by_multiplier.setdefault(multiplier, []).append(parameter)
            base = group["lr"]
            for index, (multiplier, members) in enumerate(by_multiplier.items()):
                if index == 0:
                    group["params"], group["lr"] = members, base * multiplier
                else:
                    optimizer.add_param_group({**group, "params": members, "lr": base * multiplier})

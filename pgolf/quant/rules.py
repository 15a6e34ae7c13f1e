"""Which scheme stores which tensor: ordered rules by role and name, then the scheme of the role."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

from pgolf.errors import UserError
from pgolf.quant.schemes.plain import Half
from pgolf.quant.schemes.scheme import Scheme

ROLES = ("matrix", "embedding", "head", "scalar", "gate")
LARGE_ROLES = ("matrix", "embedding", "head")
"""Roles whose small tensors are kept in half precision."""


class Rule:
    """Another scheme for the tensors of one role, or of any, whose name matches a pattern.

    Args:
        pattern: shell-style pattern of the parameter name, for example "blocks.*.mlp.*".
        scheme: scheme used instead of the role's.
        role: role the rule is about ("matrix"); null: every role.
    """

    def __init__(self, *, pattern: str, scheme: Scheme, role: str | None = None):
        self.pattern, self.scheme, self.role = pattern, scheme, role

    def matches(self, name: str, role: str, shape: tuple[int, ...]) -> bool:
        """Whether the rule is about this tensor."""
        return self.role in (None, role) and fnmatch.fnmatchcase(name, self.pattern)


class SmallTensors(Rule):
    """A rule about small tensors only.

    Args:
        pattern, scheme, role: as in Rule.
        below_elements: tensors of so many elements and more are left to the rules after it.
    """

    def __init__(self, *, below_elements: int, scheme: Scheme, pattern: str = "*", role: str | None = None):
        super().__init__(pattern=pattern, scheme=scheme, role=role)
        if below_elements < 1:
            raise ValueError(f"below_elements={below_elements}: must be 1 or more.")
        self.below_elements = below_elements

    def matches(self, name: str, role: str, shape: tuple[int, ...]) -> bool:
        """Whether the rule is about this tensor."""
        return math.prod(shape) < self.below_elements and super().matches(name, role, shape)


@dataclass(frozen=True)
class Choice:
    """The scheme that stores one tensor; None stores it exactly (integers and booleans)."""

    name: str
    role: str
    scheme: Scheme | None


class Chooser:
    """Rules in order, the first that matches wins; then the scheme of the role; small matrices in half precision.

    Args:
        schemes: role -> scheme; None: the model must have no such tensor.
        rules: name -> rule, in order.
        min_quantised_elements: a row-wise scheme of matrix, embedding or head keeps smaller tensors in float16.

    Raises ValueError for a rule about a role that does not exist.
    """

    def __init__(self, schemes: Mapping[str, Scheme | None], rules: Mapping[str, Rule], min_quantised_elements: int):
        self.schemes, self.rules, self.min_quantised_elements = dict(schemes), dict(rules), min_quantised_elements
        for key, rule in self.rules.items():
            if rule.role is not None and rule.role not in self.schemes:
                raise ValueError(f"rules.{key}: role {rule.role!r} is none of {', '.join(self.schemes)}.")

    def choose(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], exact: set[str]) -> list[Choice]:
        """The scheme of every tensor, in order; those in `exact` have none.

        Raises UserError for a tensor without a scheme, and for a rule that no tensor comes to: it was mistyped, or
        earlier rules take all its tensors.
        """
        used: set[str] = set()
        choices = []
        for name, shape in shapes.items():
            if name in exact:
                choices.append(Choice(name, roles.get(name, "buffer"), None))
            else:
                choices.append(self._choice(name, shape, roles, used))
        for key, rule in self.rules.items():
            if key not in used:
                raise UserError(self._useless(key, rule, shapes, roles))
        return choices

    def _choice(self, name: str, shape: tuple[int, ...], roles: Mapping[str, str], used: set[str]) -> Choice:
        if name not in roles:
            raise UserError(f"tensor {name} has no role, so no quantisation scheme is known.")
        role = roles[name]
        key = next((key for key, rule in self.rules.items() if rule.matches(name, role, shape)), None)
        if key is not None:
            used.add(key)
        scheme = self.rules[key].scheme if key is not None else self.schemes.get(role)
        if scheme is None:
            raise UserError(
                f"tensor {name} has role {role!r}, which has no scheme: set quant.{role} "
                f"(roles: {', '.join(self.schemes)})."
            )
        small = scheme.row_wise and role in LARGE_ROLES and math.prod(shape) < self.min_quantised_elements
        return Choice(name, role, Half() if small or not scheme.accepts(shape) else scheme)

    def _useless(self, key: str, rule: Rule, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> str:
        if any(rule.matches(name, roles.get(name, ""), shape) for name, shape in shapes.items()):
            return (
                f"quant.rules.{key} never applies: earlier rules take every tensor of its pattern "
                f"{rule.pattern!r}. Move it before them or remove it."
            )
        what = f"{rule.role} tensor" if rule.role else "tensor"
        return f"quant.rules.{key} matches no {what} (pattern {rule.pattern!r}): mend the pattern or remove the rule."

"""Quantisation-aware training by the straight-through estimator: forward and backward see rounded weights, and the
gradient at them moves the weights that are not.

The weights are exchanged around the passes of a step instead of rounded inside the model: so every use of them is
rounded (a head that is tied to the embedding, a block that is walked three times), once a step, and there is no flag
that a compiler could take for a constant. Published late QAT was inert for just that reason (2026-03-21 and after): its
flag was folded into the compiled graph, and banks of weights went past the module that read it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.gpt import GPT
from pgolf.model.roles import ROLES
from pgolf.optim.schedule import Position, Schedule
from pgolf.quant import rotation
from pgolf.quant.hessian import Calibration
from pgolf.quant.qat_rounding import NEGLIGIBLE, rounded, steps_need_calibration
from pgolf.quant.rules import Choice
from pgolf.quant.schemes import Scheme
from pgolf.quant.schemes.scheme import Adjustable
from pgolf.quant.target import first_guess

AHEAD = 1e-3  # part of the budget that a look at where the learning rates are going reaches

Calibrate = Callable[[list[str], list[str]], dict[str, Calibration]]
"""Calibrations of the weights named first, with the moments of those named second; every process calls it."""


class LateQat:
    """Rounding from some moment on, to the end of training.

    below_lr_scale: on when the multiplier of the learning rates is below this and no longer rises; at_fraction: on from
    this part of the budget; of two, whichever comes first. min_steps: fewer steps are refused: rounding that training
    has no time to answer does harm (15 steps were published to cost 0.3 bits per byte). roles: of the weights that are
    rounded, each as quant says it will be stored; what is stored in half precision is left alone.

    Raises ValueError when neither moment is given or one cannot be.
    """

    def __init__(
        self, *, below_lr_scale: float | None, at_fraction: float | None, min_steps: int, roles: list[str]
    ) -> None:
        if below_lr_scale is None and at_fraction is None:
            raise ValueError("quant.qat never comes on: give below_lr_scale or at_fraction")
        if below_lr_scale is not None and not below_lr_scale > 0.0:
            raise ValueError(f"quant.qat.below_lr_scale={below_lr_scale} must be above 0")
        if at_fraction is not None and not 0.0 <= at_fraction < 1.0:
            raise ValueError(f"quant.qat.at_fraction={at_fraction} must be at least 0 and below 1")
        if min_steps < 1:
            raise ValueError(f"quant.qat.min_steps={min_steps} must be at least 1")
        if unknown := sorted(set(roles) - set(ROLES)):
            raise ValueError(f"quant.qat.roles has no role {unknown[0]!r}: choose among {', '.join(ROLES)}")
        self.below_lr_scale, self.at_fraction = below_lr_scale, at_fraction
        self.min_steps, self.roles = min_steps, tuple(roles)

    def due(self, position: Position, lr_scale: Schedule) -> bool:
        """Whether rounding is on at `position`, given the multiplier of the learning rates."""
        if self.at_fraction is not None and position.fraction >= self.at_fraction:
            return True
        if self.below_lr_scale is None:
            return False
        soon = position.step + 1
        seconds = position.seconds * soon / max(position.step, 1)
        ahead = Position(soon, min(1.0, position.fraction + AHEAD), seconds)
        return bool(self.below_lr_scale > lr_scale.at(position) >= lr_scale.at(ahead))


class WeightRounding:
    """The rounding of one model's weights: which, by which schemes, and the steps that calibration gave.

    target_bytes: the size that the artifact is to fill, which widens or narrows all steps. sites: of the weights that
    are rotated by `turns` before they are quantised; they are rounded in that basis. ValueError when there is nothing
    to round.
    """

    def __init__(
        self,
        rule: LateQat,
        model: GPT,
        choices: list[Choice],
        target_bytes: int | None,
        calibrate: Calibrate,
        sites: Mapping[str, str],
        turns: rotation.Online | None,
    ) -> None:
        self.rule, self.min_steps = rule, rule.min_steps
        kept = [one for one in choices if one.role in rule.roles and not isinstance(one.scheme, NEGLIGIBLE)]
        self.schemes: dict[str, Scheme] = {one.name: one.scheme for one in kept if one.scheme is not None}
        if not self.schemes:
            raise ValueError(
                f"quant.qat rounds nothing: all weights of the roles {', '.join(rule.roles)} are kept in half precision"
            )
        self.parameters: dict[str, nn.Parameter] = {name: model.get_parameter(name) for name in self.schemes}
        self.target_bytes, self.calibrate = target_bytes, calibrate
        self.sites, self.turns = sites, turns
        self.factor = 1.0
        self.steps: dict[str, Tensor] = {}

    @property
    def description(self) -> str:
        """What is rounded, for people."""
        labels = [scheme.label for scheme in self.schemes.values()]
        return ", ".join(f"{labels.count(label)} x {label}" for label in dict.fromkeys(labels))

    def due(self, position: Position, lr_scale: Schedule) -> bool:
        """Whether rounding is on at `position`."""
        return self.rule.due(position, lr_scale)

    def begin(self) -> None:
        """Learn what follows from calibration: steps, and how wide the size of the artifact lets them be. Every process
        calls it; what the first one finds is what all must use (`state_dict`)."""
        names = [name for name, scheme in self.schemes.items() if steps_need_calibration(scheme)]
        moments = [name for name in names if self.schemes[name].needs_moments]
        known = self.calibrate(names, moments) if names else {}
        if names and not known:
            return  # another process does it
        weights = {name: one.detach().float() for name, one in self.parameters.items()}
        adjustable = {name: one for name, one in self.schemes.items() if isinstance(one, Adjustable)}
        if self.target_bytes is not None and adjustable:
            blank = Calibration(torch.zeros(0, 0))
            problems = [
                (weights[name].cpu(), scheme.base_steps(weights[name].cpu(), known.get(name, blank).cpu()))
                for name, scheme in adjustable.items()
            ]
            self.factor = first_guess(problems, 8.0 * self.target_bytes)
        for name in names:
            scheme = self._scheme(name)
            assert isinstance(scheme, Adjustable)  # steps_need_calibration says so of no other
            self.steps[name] = scheme.base_steps(weights[name].cpu(), known[name].cpu()).to(weights[name].device)

    def state_dict(self) -> dict[str, Any]:
        """What was learned when rounding began."""
        return {"factor": self.factor, "steps": {name: steps.cpu() for name, steps in self.steps.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what was learned."""
        self.factor = float(state["factor"])
        self.steps = {name: steps.to(self.parameters[name].device) for name, steps in state["steps"].items()}

    def _scheme(self, name: str) -> Scheme:
        """The scheme of a weight as wide as the size of the artifact lets it be."""
        scheme = self.schemes[name]
        return scheme.coarser(self.factor) if self.factor != 1.0 and isinstance(scheme, Adjustable) else scheme

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """The rounded weights, in the dtypes of the weights."""
        return {name: self._rounded(name, one).to(one.dtype) for name, one in self.parameters.items()}

    def _rounded(self, name: str, weight: Tensor) -> Tensor:
        scheme, steps, site = self._scheme(name), self.steps.get(name), self.sites.get(name)
        weight = weight.detach().float()
        if site is None or self.turns is None:
            return rounded(scheme, weight, steps)
        return self.turns.turn_back(rounded(scheme, self.turns.turn(weight, site), steps), site)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model with rounded weights inside the block; its own are back afterwards, to the last bit."""
        parameters: list[Tensor] = list(self.parameters.values())
        with torch.no_grad():
            own = [parameter.detach().clone() for parameter in parameters]
            torch._foreach_copy_(parameters, list(self.values().values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, own)

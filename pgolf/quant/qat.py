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
from pgolf.optim.schedule import Position, Schedule
from pgolf.quant import rotation
from pgolf.quant.hessian import Calibration
from pgolf.quant.qat_rounding import NEGLIGIBLE, rounded, steps_need_calibration
from pgolf.quant.qat_rules import LateQat, Noisy, Qat, Ramp, SoftRound, ToIntegers
from pgolf.quant.rules import Choice
from pgolf.quant.schemes import Float32, Scheme
from pgolf.quant.schemes.scheme import Adjustable
from pgolf.quant.target import first_guess

__all__ = ["Calibrate", "LateQat", "Noisy", "Qat", "Ramp", "SoftRound", "WeightRounding"]

Calibrate = Callable[[list[str], list[str]], dict[str, Calibration]]
"""Calibrations of the weights named first, with the moments of those named second; every process calls it."""


class WeightRounding:
    """The rounding of one model's weights: which, by which schemes, and the steps that calibration gave.

    target_bytes: the size that the artifact is to fill, which widens or narrows all steps. sites: of the weights that
    are rotated by `turns` before they are quantised; they are rounded in that basis. ValueError when there is nothing
    to round, or when a rule that promises the export to be what training saw cannot keep that.
    """

    def __init__(
        self,
        rule: Qat,
        model: GPT,
        choices: list[Choice],
        target_bytes: int | None,
        calibrate: Calibrate,
        sites: Mapping[str, str],
        turns: rotation.Online | None,
    ) -> None:
        self.rule, self.min_steps = rule, rule.min_steps
        unseen = (Float32,) if rule.exact else NEGLIGIBLE
        kept = [one for one in choices if one.role in rule.roles and not isinstance(one.scheme, unseen)]
        self.schemes: dict[str, Scheme] = {one.name: one.scheme for one in kept if one.scheme is not None}
        if not self.schemes:
            raise ValueError(
                f"quant.qat rounds nothing: all weights of the roles {', '.join(rule.roles)} are kept in half precision"
            )
        if rule.exact:
            _refuse_inexact(choices, rule, turns)
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

    def share(self, steps_on: int) -> float:
        """The part of the rounding that weights feel after so many steps with it."""
        return self.rule.share(steps_on)

    @torch.no_grad()
    def values(self) -> dict[str, Tensor]:
        """The weights rounded as the export rounds them, in the dtypes of the weights."""
        return {
            name: self._rounded(name, one.detach().float(), torch.round).to(one.dtype)
            for name, one in self.parameters.items()
        }

    def felt(self, steps_on: int, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that a step sees, in the dtypes of `own`: the weights that are not rounded."""
        share, found = self.rule.share(steps_on), {}
        for name, weight in own.items():
            value = self._rounded(name, weight.float(), self.rule.to_integers(name, steps_on)).to(weight.dtype)
            # at a share of 1 exactly the rounded value, which w + (rounded - w) may miss by a bit
            found[name] = value if share == 1.0 else torch.lerp(weight, value, share)
        return found

    def _rounded(self, name: str, weight: Tensor, to_integers: ToIntegers) -> Tensor:
        scheme, steps, site = self._scheme(name), self.steps.get(name), self.sites.get(name)
        if site is None or self.turns is None:
            return rounded(scheme, weight, steps, to_integers)
        return self.turns.turn_back(rounded(scheme, self.turns.turn(weight, site), steps, to_integers), site)

    @contextlib.contextmanager
    def applied(self, steps_on: int = 0) -> Iterator[None]:
        """The model inside the block as a step sees it, after so many with rounding; its own weights are back
        afterwards, to the last bit, and what the block added to their gradients belongs to them."""
        parameters: list[Tensor] = list(self.parameters.values())
        with torch.no_grad():
            own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        through = not self.rule.straight_through
        for weight in own.values():
            weight.requires_grad_(through)
        with torch.set_grad_enabled(through):
            felt = self.felt(steps_on, own)
        with torch.no_grad():
            torch._foreach_copy_(parameters, [value.detach() for value in felt.values()])
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, [weight.detach() for weight in own.values()])
        if through:
            self._pull_back(own, felt)

    def _pull_back(self, own: Mapping[str, Tensor], felt: Mapping[str, Tensor]) -> None:
        """Gradients at what the step saw become those at the weights. Nothing was accumulated before the block."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                (pulled,) = torch.autograd.grad(felt[name], own[name], parameter.grad)
                parameter.grad.copy_(pulled)


def _refuse_inexact(choices: list[Choice], rule: Qat, turns: rotation.Online | None) -> None:
    """ValueError where the export would not give back what training saw."""
    promise = "this rule of quant.qat promises that the artifact holds what training saw"
    if turns is not None:
        raise ValueError(f"{promise}, which a rotation is not exact enough for: choose quant/rotation=none")
    for one in choices:
        if one.scheme is not None and one.role not in rule.roles and not isinstance(one.scheme, Float32):
            raise ValueError(
                f"{promise}: {one.name} is stored as {one.scheme.label}, so add {one.role} to quant.qat.roles, or "
                "store it as float32"
            )
        if one.scheme is not None and one.scheme.needs_hessian:
            raise ValueError(
                f"{promise}, and {one.scheme.label} of {one.name} adds error feedback that training does not know: "
                "choose a scheme that rounds each value by itself (int8_rows, percentile, ternary) or quant/qat=late"
            )

"""Quantisation-aware training: from when weights are rounded, how much of the rounding they feel, and how it is
differentiated. `pgolf.quant.qat` does it."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgolf.model.roles import ROLES, stream
from pgolf.optim.schedule import Position, Schedule

AHEAD = 1e-3  # part of the budget that a look at where the learning rates are going reaches

ToIntegers = Callable[[Tensor], Tensor]
"""Weights in steps -> about the integers that stand for them, of the same shape and dtype."""


class Qat:
    """What all rules share. min_steps: fewer steps with rounded weights are refused: rounding that training has no time
    to answer does harm (15 steps were published to cost 0.3 bits per byte). roles: of the weights that are rounded,
    each as quant says it will be stored.

    exact: whether the export must give back what the last step saw, to the last bit. straight_through: whether the
    gradient at the rounded weights is taken for that at the weights; else it goes back through `to_integers`.

    Raises ValueError for numbers that cannot be.
    """

    exact = False
    straight_through = True

    def __init__(self, *, min_steps: int, roles: list[str]) -> None:
        if min_steps < 1:
            raise ValueError(f"quant.qat.min_steps={min_steps} must be at least 1")
        if unknown := sorted(set(roles) - set(ROLES)):
            raise ValueError(f"quant.qat.roles has no role {unknown[0]!r}: choose among {', '.join(ROLES)}")
        self.min_steps, self.roles = min_steps, tuple(roles)

    def due(self, position: Position, lr_scale: Schedule) -> bool:
        """Whether rounding is on at `position`, given the multiplier of the learning rates."""
        raise NotImplementedError

    def share(self, steps_on: int) -> float:
        """The part of the rounding that weights feel, w + share * (rounded - w), after so many steps with it."""
        return 1.0

    def to_integers(self, name: str, steps_on: int) -> ToIntegers:
        """How the weight `name` goes to the levels of its grid after so many steps with rounding."""
        return torch.round


class LateQat(Qat):
    """Rounding from some moment on, to the end of training.

    below_lr_scale: on when the multiplier of the learning rates is below this and no longer rises; at_fraction: on from
    this part of the budget; of two, whichever comes first. min_steps, roles: see `Qat`; what is stored in half
    precision is left alone.

    Raises ValueError when neither moment is given or one cannot be.
    """

    def __init__(
        self, *, below_lr_scale: float | None, at_fraction: float | None, min_steps: int, roles: list[str]
    ) -> None:
        super().__init__(min_steps=min_steps, roles=roles)
        if below_lr_scale is None and at_fraction is None:
            raise ValueError("quant.qat never comes on: give below_lr_scale or at_fraction")
        if below_lr_scale is not None and not below_lr_scale > 0.0:
            raise ValueError(f"quant.qat.below_lr_scale={below_lr_scale} must be above 0")
        if at_fraction is not None and not 0.0 <= at_fraction < 1.0:
            raise ValueError(f"quant.qat.at_fraction={at_fraction} must be at least 0 and below 1")
        self.below_lr_scale, self.at_fraction = below_lr_scale, at_fraction

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


class Ramp(Qat):
    """Rounding that grows: w + share * (rounded - w), the share from 0 at from_step to 1 ramp_steps later.

    Steps, and not seconds, so that a machine that sleeps does not advance it. At the end weights are rounded in full,
    and what training saw is what the artifact holds, to the last bit: every scheme must round each value by itself, so
    schemes with error feedback (GPTQ) are refused, and float16 weights are float16 in training as well.

    Source: the ternary study of 2026 on CPUs (from step 500 to step 60,000; nothing published reached a file from
    which the trained model came back: thresholds and scales were computed anew from other weights than those of
    training). The record of 2026-03-24 has no ramp (from_step=0, ramp_steps=0).
    Raises ValueError when min_steps, which counts from from_step on, would end before the ramp.
    """

    exact = True

    def __init__(self, *, from_step: int, ramp_steps: int, min_steps: int, roles: list[str]) -> None:
        super().__init__(min_steps=min_steps, roles=roles)
        if min(from_step, ramp_steps) < 0:
            raise ValueError(f"quant.qat.from_step={from_step} and ramp_steps={ramp_steps} must not be negative")
        if min_steps <= ramp_steps:
            raise ValueError(
                f"quant.qat.min_steps={min_steps} must be above ramp_steps={ramp_steps}: it counts from from_step on, "
                "and training must come to steps whose weights are rounded in full"
            )
        self.from_step, self.ramp_steps = from_step, ramp_steps

    def due(self, position: Position, lr_scale: Schedule) -> bool:
        """From from_step on."""
        return position.step >= self.from_step

    def share(self, steps_on: int) -> float:
        """Rising linearly to 1."""
        return min(1.0, steps_on / self.ramp_steps) if self.ramp_steps else 1.0


class SoftRound(LateQat):
    """Late rounding that the gradient goes through: floor(x) + sigmoid(a (x - floor(x) - 1/2)) for weights x in steps.

    a rises from sharpness_start to sharpness_end over ramp_steps; steps themselves are taken as constant. The other
    arguments: see `LateQat`. Source: the record of 2026-03-31 (1 to 16 over 500 steps), whose weights lay in banks that
    its rounding did not reach; here it reaches them. Raises ValueError for numbers that cannot be.
    """

    straight_through = False

    def __init__(
        self,
        *,
        below_lr_scale: float | None,
        at_fraction: float | None,
        min_steps: int,
        roles: list[str],
        sharpness_start: float,
        sharpness_end: float,
        ramp_steps: int,
    ) -> None:
        super().__init__(below_lr_scale=below_lr_scale, at_fraction=at_fraction, min_steps=min_steps, roles=roles)
        if not 0.0 < sharpness_start <= sharpness_end or ramp_steps < 0:
            raise ValueError(
                f"quant.qat.sharpness_start={sharpness_start} must be above 0 and at most "
                f"sharpness_end={sharpness_end}, ramp_steps={ramp_steps} not negative"
            )
        self.sharpness_start, self.sharpness_end, self.ramp_steps = sharpness_start, sharpness_end, ramp_steps

    def to_integers(self, name: str, steps_on: int) -> ToIntegers:
        """The soft staircase of this step."""
        part = min(1.0, steps_on / self.ramp_steps) if self.ramp_steps else 1.0
        sharpness = self.sharpness_start + part * (self.sharpness_end - self.sharpness_start)

        def soft(values: Tensor) -> Tensor:
            below = values.detach().floor()
            return below + torch.sigmoid(sharpness * (values - below - 0.5))

        return soft


class Noisy(LateQat):
    """Late noise instead of rounding: w + (u - 1/2) step, u uniform in [0, 1) and new in every step and weight.

    The noise is as wide as the export's steps and has its error's variance; the gradient goes straight through. Every
    process draws the same. seed: of the draws. The other arguments: see `LateQat`. Source: PR 363 (2026-03-21), whose
    text describes it for blocks that recurrence visits again; its script lacks it.
    """

    def __init__(
        self,
        *,
        below_lr_scale: float | None,
        at_fraction: float | None,
        min_steps: int,
        roles: list[str],
        seed: int,
    ) -> None:
        super().__init__(below_lr_scale=below_lr_scale, at_fraction=at_fraction, min_steps=min_steps, roles=roles)
        self.seed = seed

    def to_integers(self, name: str, steps_on: int) -> ToIntegers:
        """Weights in steps with noise, drawn on their device."""

        def noisy(values: Tensor) -> Tensor:
            start = stream(self.seed, f"noise/{name}/{steps_on}").initial_seed()
            generator = torch.Generator(values.device).manual_seed(start)
            return values + torch.rand(values.shape, generator=generator, device=values.device) - 0.5

        return noisy

"""Schedules as data: a number for each moment of training."""


class Warmdown:
    """Multiplier on all learning rates: 1, then linear to 0 over the last `fraction` of the budget, never under
    `floor`.

    Source: modded-nanogpt; floor (min_lr) from PR 1787. Raises ValueError when fraction is not in (0, 1] or floor not
    in [0, 1].
    """

    def __init__(self, *, fraction: float, floor: float) -> None:
        if not 0.0 < fraction <= 1.0 or not 0.0 <= floor <= 1.0:
            raise ValueError(f"warmdown fraction={fraction} must lie in (0, 1] and floor={floor} in [0, 1]")
        self.fraction = fraction
        self.floor = floor

    def __call__(self, progress: float) -> float:
        """Multiplier at `progress`, the elapsed part of the budget in [0, 1]."""
        if progress < 1.0 - self.fraction:
            return 1.0
        return max((1.0 - progress) / self.fraction, self.floor)


class MomentumRamp:
    """Momentum that goes linearly from `start` to `end` over the first `steps` steps."""

    def __init__(self, *, start: float, end: float, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"momentum ramp steps={steps} must be at least 1")
        self.start, self.end, self.steps = start, end, steps

    def __call__(self, step: int) -> float:
        """Momentum of training step `step` (0 is the first)."""
        share = min(step / self.steps, 1.0)
        return self.start + (self.end - self.start) * share

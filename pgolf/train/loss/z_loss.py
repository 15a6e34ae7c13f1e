"""The z-loss: a penalty on the log of the partition function."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from pgolf.data.loaders import Batch
from pgolf.model.gpt import GPT
from pgolf.model.roles import Part
from pgolf.optim.schedule import Position, Schedule, Turn
from pgolf.train.loss.forward import Forward
from pgolf.train.loss.objective import Draw, Facts


class ZLoss:
    """coefficient * mean over tokens of logsumexp(logits)^2, of the logits after the cap (PaLM, 2022; 1e-4 in the
    ternary record of 2026-03-24, where the score held it too: here it is in no score).

    schedule: a multiplier on the coefficient (Taper(start=0, final=0.1): from 1e-4 to 1e-5 over the budget); None: 1.
    Raises ValueError when the coefficient is not positive.
    """

    parts = 1
    wanted: frozenset[int] = frozenset()

    def __init__(self, *, coefficient: float, schedule: Schedule | None = None) -> None:
        if not 0.0 < coefficient < math.inf:
            raise ValueError(f"z-loss coefficient={coefficient} must be positive (without it, leave the term out)")
        self.base, self.schedule = coefficient, schedule

    @property
    def turns(self) -> Sequence[Turn]:
        """Those of its schedule."""
        return () if self.schedule is None else self.schedule.turns

    def refusals(self, lengths: Sequence[int]) -> Iterator[str]:
        """Nothing is refused."""
        yield from ()

    def heads(self, model: GPT) -> Part | None:
        """None."""
        return None

    def coefficient(self, position: Position) -> float:
        """The coefficient at `position`."""
        return self.base if self.schedule is None else self.base * float(self.schedule.at(position))

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Facts, Sequence[float]]:
        """The number of tokens."""
        return (), [float(batch.targets.numel())]

    def __call__(self, made: Forward, heads: Part | None, facts: Facts) -> Tensor:
        """fp32 [1]: the sum over tokens."""
        return made.denominators.square().sum()[None]

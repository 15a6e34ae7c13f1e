"""One temperature for all logits, fitted on training text and kept in the artifact: p' is proportional to p^(1 / T).

Source: the evaluation of the ternary, XNOR and JEPA records of 2026-03 and -04 (five temperatures from 0.90 to 1.10 on
65,536 training tokens). The ternary script's model ignored its temperature, so all five losses were equal and the first
won; the others divided. Here the model of the artifact divides its capped logits, in every score and under every
adaptation.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgolf.errors import UserError
from pgolf.model.context import Context
from pgolf.quant.calibration import Ground, TrainingText

TEMPERATURE = "temperature"
"""The entry of an artifact's metadata."""
DIGITS = 4
"""Decimals of what is stored."""


class Temperature:
    """The temperature of least loss on training text, which the quantised model reads after the calibration.

    A parabola through the losses of the best candidate and its neighbours gives it; at an end of the candidates it is
    that end, and that is said. Text that the model has learned from makes it look surer than it is: a model that has
    seen its training text many times wants a temperature above what this finds.

    Args:
        tokens: of training text, at least; whole batches are read.
        candidates: the temperatures to try, rising, three or more.
    """

    def __init__(self, *, tokens: int, candidates: Sequence[float]):
        rising = all(one < other for one, other in pairwise(candidates))
        if len(candidates) < 3 or not rising or not candidates[0] > 0:
            raise ValueError(f"candidates={list(candidates)}: give three or more positive numbers that rise.")
        if tokens < 1:
            raise ValueError(f"tokens={tokens}: must be 1 or more.")
        self.tokens, self.candidates = tokens, tuple(candidates)

    def fit(self, ground: Ground, skip_batches: int) -> float:
        """The temperature for the model of `ground`; every process calls it, and all find the same. skip_batches: of
        the training text, which calibration has read."""
        losses = self.losses(ground, skip_batches)
        found = round(vertex(self.candidates, losses), DIGITS)
        told = ", ".join(f"{one:g}: {loss:.5f}" for one, loss in zip(self.candidates, losses, strict=True))
        ground.console.say(f"quant.temperature: {found:g} (training text: {told})")
        if found in (round(self.candidates[0], DIGITS), round(self.candidates[-1], DIGITS)):
            ground.console.say(
                "quant.temperature: that is an end of quant.temperature.candidates; the best is beyond it"
            )
        return found

    @torch.no_grad()
    def losses(self, ground: Ground, skip_batches: int) -> list[float]:
        """Mean cross entropy of every candidate over the same tokens, in nats."""
        group, model, rows = ground.group, ground.model, ground.shape.rows
        count = max(math.ceil(self.tokens / (rows * ground.shape.sequence_tokens)), group.world_size)
        give, context = TrainingText().open(ground), Context(ground.attention)
        sums = torch.zeros(len(self.candidates) + 1, dtype=torch.float64, device=group.device)
        for number in range(skip_batches + group.rank, skip_batches + count, group.world_size):
            batch = give(number)
            with model.precision.autocast(group.device):
                logits = model.logits(model(batch.inputs.to(group.device), context), context)
            logits, targets = logits.float().flatten(0, 1), batch.targets.to(group.device).flatten()
            parts: list[Tensor] = [cross_entropy(logits / one, targets, reduction="sum") for one in self.candidates]
            sums += torch.stack([*parts, torch.tensor(float(len(targets)), device=group.device)]).double()
        group.sum_(sums)
        return [float(one) for one in sums[:-1] / sums[-1]]


def vertex(points: Sequence[float], values: Sequence[float]) -> float:
    """Where the parabola through the least of `values` and its two neighbours has its minimum; at an end, that end."""
    best = min(range(len(values)), key=lambda index: values[index])
    if best in (0, len(values) - 1):
        return points[best]
    (a, b, c), (x, y, z) = points[best - 1 : best + 2], values[best - 1 : best + 2]
    left, right = (b - a) * (y - z), (b - c) * (y - x)
    if left == right:  # three equal losses
        return b
    return b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)


def temperature_of(metadata: Mapping[str, Any]) -> float:
    """The temperature that an artifact brings along, 1 without. UserError when it is none."""
    found = metadata.get(TEMPERATURE, 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0.0 < found < math.inf:
        raise UserError(f"the artifact says {TEMPERATURE}={found!r}: that must be a positive number")
    return float(found)

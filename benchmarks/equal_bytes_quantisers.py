"""The quantisers that benchmarks/equal_bytes.py compares: options of pgolf, and rivals that are none."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from pgolf.quant.compress import Compressor
from pgolf.quant.gptq import Factor, Rounder
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import SensitivityGptq
from pgolf.quant.schemes.sensitivity import LEVELS


class RateDistortion(SensitivityGptq):
    """Naive rate-distortion rounding (RDOQ) inside GPTQ: a value goes to the next level towards zero where its squared
    error in steps grows by less than `rate_weight` times the bits that this saves, symbols taken as Gaussian."""

    def __init__(self, *, rate_weight: float, **others: Any):
        super().__init__(**others)
        self.rate_weight = rate_weight

    def coarser(self, factor: float) -> Self:
        """The same scheme with steps `factor` times as wide."""
        others = {"granularity": self.granularity, "smoothing": self.smoothing}
        return type(self)(rate_weight=self.rate_weight, scale=self.scale * factor, **others)

    def _rounder(self, steps: Tensor, sensitivity: Tensor) -> Rounder:
        def rounder(column: Tensor, index: int) -> tuple[Tensor, Tensor]:
            values = column / steps
            variance = values.square().mean() + 1 / 12
            nearest = torch.round(values).clamp_(-LEVELS, LEVELS)
            smaller = nearest - nearest.sign()
            saved_bits = (nearest.square() - smaller.square()) / (2 * variance * math.log(2))
            lost = (values - smaller).square() - (values - nearest).square()
            symbols = torch.where(lost < self.rate_weight * saved_bits, smaller, nearest)
            return symbols, symbols * steps

        return rounder


class RowDeviations(SensitivityGptq):
    """SDClip's steps, proportional to the deviation of each row, with the best multiplier for each tensor."""

    def _steps(self, weight: Tensor, calibration: Calibration, factor: Factor) -> Tensor:
        deviations = weight.std(dim=1).clamp_min(1e-10)
        hardness = float(factor.upper.diagonal().double().pow(-2).mean())
        mean = (self.sensitivity(calibration) * deviations.square()).mean()
        return self.scale * deviations / (mean * hardness).sqrt()


def replaced(make: Callable[[SensitivityGptq], SensitivityGptq]) -> Callable[[Compressor], None]:
    """A change of a compressor: other schemes for those by sensitivity."""

    def change(compressor: Compressor) -> None:
        schemes = compressor.chooser.schemes
        for role, scheme in schemes.items():
            schemes[role] = make(scheme) if isinstance(scheme, SensitivityGptq) else scheme

    return change


@dataclass(frozen=True)
class Quantiser:
    """An option of quant with overrides, and what is done to the compressor for what is no option of pgolf.

    everywhere: at all SHARES, not only at the first.
    """

    option: str
    overrides: tuple[str, ...] = ()
    change: Callable[[Compressor], None] = lambda compressor: None
    everywhere: bool = True


def rate_distortion(weight: float) -> Quantiser:
    """Steps by row with naive rate-distortion rounding."""
    made = replaced(lambda scheme: RateDistortion(rate_weight=weight, smoothing=scheme.smoothing))
    return Quantiser("sensitivity", (), made, everywhere=False)


def embedding_clip(sigmas: float) -> Quantiser:
    """SDClip with another clip of the embedding than the published 15 deviations."""
    return Quantiser("gptq", (f"quant.embedding.clip_sigmas={sigmas}",), everywhere=False)


QUANTISERS: dict[str, Quantiser] = {
    "SDClip": Quantiser("gptq"),
    "SDClip, embedding 7.5": embedding_clip(7.5),
    "SDClip, embedding 11": embedding_clip(11.0),
    "SDClip, rANS": Quantiser("gptq", ("quant.coder=rans",)),
    "SDClip by tensor": Quantiser(
        "sensitivity", (), replaced(lambda scheme: RowDeviations(smoothing=scheme.smoothing)), everywhere=False
    ),
    "step by tensor": Quantiser(
        "sensitivity", ("quant.matrix.granularity=tensor", "quant.embedding.granularity=tensor")
    ),
    "step by row": Quantiser("sensitivity"),
    "trellis": Quantiser("trellis"),
    "trellis with zero": Quantiser("trellis_zero"),
    "RDOQ 0.06": rate_distortion(0.06),
    "RDOQ 0.15": rate_distortion(0.15),
}
"""Name -> quantiser that fills a number of bytes."""

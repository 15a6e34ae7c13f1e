"""GPTQ on steps that follow from what an error costs, by row or by tensor; and the same with trellis-coded symbols.

An error e_i of row i raises the loss by about F_i e_i^T H e_i: H are the inputs' second moments, F_i that of the
gradient at output i. Rounding with GPTQ on a step s_i leaves e_i^T H e_i near cols * h * s_i^2 / 12, where h is the
mean of 1 / d_j^2 over the pivots d_j of GPTQ's factor, and a coded weight takes log2(sigma_i / s_i) bits and a
constant. Most is gained from given bytes when all rows lose alike: s_i = scale / sqrt(F_i h), with one scale for the
whole model.
"""

import math
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded, grid_of, grid_steps
from pgolf.quant.gptq import Factor, Rounder, check_problem, factorise, quantise_columns
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import Cost, gaussian_entropy, is_matrix, require_hessian, require_positive
from pgolf.quant.trellis import encode_path

Granularity = Literal["row", "tensor"]

LEVELS = 127
"""Symbols are int8. Steps are never so fine that a row's largest weight would lie beyond 9 / 10 of them."""


class SensitivityGptq:
    """GPTQ with steps from the Hessian and the output gradients, on a logarithmic grid.

    Args:
        scale: step where a squared error of one costs one; found by `quant.target_bytes`.
        granularity: a step for each row, or one for the tensor, of the mean sensitivity.
        smoothing: share of the tensor's mean sensitivity that every row's is mixed with; rows that the calibration
            never saw matter would else lose all their values. Of 0.1, 0.3 and 0.5 the second lost least (LAB.md).
        block_size: columns handled together; changes the speed only.
    """

    needs_hessian = needs_moments = row_wise = True
    name = "sensitivity gptq"

    def __init__(
        self,
        *,
        scale: float = 1.0,
        granularity: Granularity = "row",
        smoothing: float = 0.3,
        block_size: int = 128,
    ):
        require_positive(scale=scale, block_size=block_size)
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing={smoothing}: must lie between 0 and 1.")
        self.scale, self.granularity, self.smoothing, self.block_size = scale, granularity, smoothing, block_size
        self.label = f"{self.name} by {granularity}"

    def coarser(self, factor: float) -> Self:
        """The same scheme with steps `factor` times as wide."""
        return type(self)(
            scale=self.scale * factor,
            granularity=self.granularity,
            smoothing=self.smoothing,
            block_size=self.block_size,
        )

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of two or more columns."""
        return is_matrix(shape, columns=2)

    def sensitivity(self, calibration: Calibration) -> Tensor:
        """F_i, smoothed; float32 [rows]. ValueError when the gradients were not collected."""
        moments = calibration.row_moments
        if moments is None:
            raise ValueError(f"{self.label} needs the output gradients, and none were collected.")
        mean = moments.mean()
        if not (torch.isfinite(mean) and mean > 0):
            raise ValueError(f"{self.label}: the output gradients are zero or not finite.")
        if self.granularity == "tensor":
            return torch.full_like(moments, float(mean))
        return (1 - self.smoothing) * moments + self.smoothing * mean

    def base_steps(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """Steps before they are put on the grid; float32 [rows]."""
        return self._steps(weight, calibration, factorise(calibration.hessian))

    def _steps(self, weight: Tensor, calibration: Calibration, factor: Factor) -> Tensor:
        hardness = float(factor.upper.diagonal().double().pow(-2).mean())
        return self.scale / (self.sensitivity(calibration) * hardness).sqrt()

    def _exponents(self, weight: Tensor, steps: Tensor) -> Tensor:
        """The steps as exponents of the grid, int16 [rows] or [1]: fine enough for the error, wide enough for int8."""
        widest = weight.abs().amax(dim=1).clamp_min(2.0**-100) / (0.9 * LEVELS)
        if self.granularity == "tensor":
            steps, widest = steps[:1], widest.amax(dim=0, keepdim=True)
        grid = grid_of(len(steps))
        exponents = torch.maximum(torch.round(grid * steps.log2()), torch.ceil(grid * widest.log2()))
        return exponents.clamp_(-grid * 100, grid * 100).to(torch.int16)

    def quantise(self, weight: Tensor, calibration: Calibration | None) -> Encoded:
        """Encode `weight` [rows, cols] with the Hessian of its inputs and the moments of its output gradients."""
        given = require_hessian(self.label, calibration)
        weight = weight.detach().float()
        check_problem(weight, given.hessian)
        factor = factorise(given.hessian)
        exponents = self._exponents(weight, self._steps(weight, given, factor))
        steps = grid_steps(exponents).expand(len(weight))
        symbols = quantise_columns(weight, factor, self._rounder(steps, self.sensitivity(given)), self.block_size)
        parts = {"symbols": symbols.numpy(), "steps": exponents.numpy()}
        return Encoded("steps", self.label, tuple(weight.shape), parts | self._more_parts())

    def _more_parts(self) -> dict[str, np.ndarray]:
        return {}

    def _rounder(self, steps: Tensor, sensitivity: Tensor) -> Rounder:
        def rounder(column: Tensor, index: int) -> tuple[Tensor, Tensor]:
            symbols = torch.round(column / steps).clamp_(-LEVELS, LEVELS)
            return symbols, symbols * steps

        return rounder

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """What `quant.target_bytes` will make of it is not known before the weights: that of six-bit GPTQ."""
        return Cost(
            gaussian_entropy(12.85 / 31, 31), 8, math.ceil(shape[0] * 5 / 8) if self.granularity == "row" else 2
        )


class TrellisGptq(SensitivityGptq):
    """The same steps, symbols by trellis-coded quantisation: eight states, Viterbi down each column inside GPTQ's
    error feedback, errors weighted by the sensitivity of their rows (`pgolf.quant.trellis`).

    Args:
        scale, granularity, smoothing, block_size: as in SensitivityGptq.
        segment: rows of one path. Longer ones gain more and take longer: 64 rows 0.166 bit a weight, 128 0.175, 256
            0.179, without end 0.183 (Gaussian values at 3.3 bits).
    """

    name = "trellis gptq"
    zero = False

    def __init__(
        self,
        *,
        scale: float = 1.0,
        granularity: Granularity = "row",
        smoothing: float = 0.3,
        segment: int = 128,
        block_size: int = 128,
    ):
        super().__init__(scale=scale, granularity=granularity, smoothing=smoothing, block_size=block_size)
        if not 1 <= segment < 1 << 16:
            raise ValueError(f"segment={segment}: a path has 1 to 65535 rows.")
        self.segment = segment

    def coarser(self, factor: float) -> Self:
        """The same scheme with steps `factor` times as wide."""
        return type(self)(
            scale=self.scale * factor,
            granularity=self.granularity,
            smoothing=self.smoothing,
            segment=self.segment,
            block_size=self.block_size,
        )

    def _more_parts(self) -> dict[str, np.ndarray]:
        return {"trellis_segment": np.array(self.segment, np.int32)}

    def _rounder(self, steps: Tensor, sensitivity: Tensor) -> Rounder:
        damage = sensitivity.double() * steps.double().square()
        weights = (damage / damage.mean()).float().numpy()

        def rounder(column: Tensor, index: int) -> tuple[Tensor, Tensor]:
            symbols, values = encode_path((column / steps).numpy(), weights, self.segment, LEVELS, self.zero)
            return torch.from_numpy(symbols), torch.from_numpy(values) * steps

        return rounder


class ZeroTrellisGptq(TrellisGptq):
    """The same with a zero in both codebooks (`pgolf.quant.trellis`): for artifacts so small that some rows have steps
    several times as wide as their weights.

    Args:
        scale, granularity, smoothing, segment, block_size: as in TrellisGptq.
    """

    name = "trellis gptq with zero"
    zero = True

    def _more_parts(self) -> dict[str, np.ndarray]:
        return super()._more_parts() | {"trellis_zero": np.array(1, np.uint8)}

"""GPTQ-lite: the clip of a whole matrix chosen among percentiles of its rows, by squared error (records of 2026-03-22
and later)."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.gptq import check_problem, factorise, float16_scales, quantise_columns, safe_steps, to_nearest
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.int8 import extreme_cost, row_quantiles
from pgolf.quant.schemes.scheme import (
    Cost,
    encoded_rows,
    is_matrix,
    require_bits,
    require_finite,
    require_hessian,
)

PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)


class PercentileRows:
    """Rounding to the nearest level with the percentile that has the least mean squared error.

    Args:
        bits: 2 to 8 bits a symbol.
        percentiles: the clips to try, as shares of a row's magnitudes; 1 is the largest value. As in the published
            code, one share serves all rows of the matrix.
        least_clip: no row is clipped below this value. The published 1.0 gives rows of small values steps that are
            coarse; 0 lifts that.
    """

    needs_hessian = needs_moments = False
    row_wise = True

    def __init__(self, *, bits: int, percentiles: Sequence[float] = PERCENTILES, least_clip: float = 1.0):
        require_bits(bits)
        if not percentiles or not all(0 < share <= 1 for share in percentiles):
            raise ValueError(f"percentiles={list(percentiles)}: give one or more shares above 0 and not above 1.")
        if not least_clip >= 0:
            raise ValueError(f"least_clip={least_clip}: must not be negative.")
        self.bits, self.percentiles, self.least_clip = bits, tuple(percentiles), least_clip
        self.levels = 2 ** (bits - 1) - 1
        self.label = f"percentile int{bits}"

    def with_bits(self, bits: int) -> Self:
        """The same scheme with so many bits a symbol and the same clips to try."""
        return type(self)(bits=bits, percentiles=self.percentiles, least_clip=self.least_clip)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices."""
        return is_matrix(shape)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode `weight` [rows, cols]; nothing of the calibration is used."""
        weight = weight.detach().float()
        require_finite(weight)
        best: tuple[float, Tensor, Tensor] | None = None
        for share in self.percentiles:
            scales = self._scales(weight, share)
            symbols = self._symbols(weight, scales, calibration)
            error = float((symbols.float() * scales.float()[:, None] - weight).square().mean())
            if best is None or error < best[0]:
                best = (error, symbols, scales)
        assert best is not None  # there is at least one share
        return encoded_rows(self.label, weight, best[1], best[2])

    def _scales(self, weight: Tensor, share: float) -> Tensor:
        magnitudes = weight.abs()
        clip = magnitudes.amax(dim=1) if share == 1 else row_quantiles(magnitudes, share)
        return float16_scales(clip.clamp_min(self.least_clip) / self.levels)

    def _symbols(self, weight: Tensor, scales: Tensor, calibration: Calibration | None) -> Tensor:
        return torch.round(weight / safe_steps(scales)[:, None]).clamp_(-self.levels, self.levels)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy when the largest of a row's Gaussian values is at the outermost level."""
        return extreme_cost(shape, self.levels)


class PercentileGptq(PercentileRows):
    """The same search around GPTQ (records of 2026-03-25 to 2026-04-04): every percentile is tried with full error
    feedback, and the plain squared error decides.

    Args:
        bits, percentiles, least_clip: as in PercentileRows.
        block_size: columns handled together; changes the speed only.
    """

    needs_hessian = True

    def __init__(
        self,
        *,
        bits: int,
        percentiles: Sequence[float] = PERCENTILES,
        least_clip: float = 1.0,
        block_size: int = 128,
    ):
        super().__init__(bits=bits, percentiles=percentiles, least_clip=least_clip)
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: must be 1 or more.")
        self.block_size = block_size
        self.label = f"percentile gptq int{bits}"

    def with_bits(self, bits: int) -> Self:
        """The same scheme with so many bits a symbol and the same clips to try."""
        return type(self)(
            bits=bits, percentiles=self.percentiles, least_clip=self.least_clip, block_size=self.block_size
        )

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of two or more columns."""
        return is_matrix(shape, columns=2)

    def _symbols(self, weight: Tensor, scales: Tensor, calibration: Calibration | None) -> Tensor:
        given = require_hessian(self.label, calibration)
        check_problem(weight, given.hessian)
        factor = factorise(given.hessian)
        return quantise_columns(weight, factor, to_nearest(scales, self.levels), self.block_size)

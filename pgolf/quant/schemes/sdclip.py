"""GPTQ with the clip set by the standard deviation of each row, and the variant that weighs rows by the Hessian."""

from typing import Self

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.gptq import MIN_SCALE, check_problem, factorise, float16_scales, quantise_columns, to_nearest
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import (
    Cost,
    encoded_rows,
    gaussian_entropy,
    is_matrix,
    require_bits,
    require_hessian,
    require_positive,
)

LEAST_CLIP = 4.5
"""Standard deviations; a Gaussian row of 512 values has its largest near three."""


class Gptq:
    """GPTQ with the standard-deviation clip of the records (PR 1394), see `pgolf.quant.gptq`.

    Args:
        bits: 2 to 8 bits a symbol.
        clip_sigmas: standard deviations of a row that reach the outermost level; larger means
            coarser steps and fewer bytes after the entropy coder.
        block_size: columns handled together; changes the speed only.
    """

    needs_hessian = row_wise = True
    needs_moments = False

    def __init__(self, *, bits: int, clip_sigmas: float, block_size: int = 128):
        require_bits(bits)
        require_positive(clip_sigmas=clip_sigmas, block_size=block_size)
        self.bits, self.clip_sigmas, self.block_size = bits, clip_sigmas, block_size
        self.levels = 2 ** (bits - 1) - 1
        self.label = f"gptq int{bits}"

    def coarser(self, factor: float) -> Self:
        """The same scheme with steps `factor` times as wide. Where they would clip a row below LEAST_CLIP standard
        deviations, symbols get more bits, up to eight."""
        bits, clip_sigmas = self.bits, self.clip_sigmas * factor
        while clip_sigmas < LEAST_CLIP and bits < 8:
            clip_sigmas *= (2**bits - 1) / (2 ** (bits - 1) - 1)
            bits += 1
        return self._with(bits, clip_sigmas)

    def with_bits(self, bits: int) -> Self:
        """The same scheme with so many bits a symbol and the same clip."""
        return self._with(bits, self.clip_sigmas)

    def _with(self, bits: int, clip_sigmas: float) -> Self:
        return type(self)(bits=bits, clip_sigmas=clip_sigmas, block_size=self.block_size)

    def base_steps(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """The step of every row; float32 [rows]."""
        return self.scales(weight, calibration)

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of two or more columns."""
        return is_matrix(shape, columns=2)

    def scales(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """The step of every row before the rounding to float16; float32 [rows]."""
        return (self.clip_sigmas * weight.std(dim=1) / self.levels).clamp_min(MIN_SCALE)

    def quantise(self, weight: Tensor, calibration: Calibration | None) -> Encoded:
        """Encode `weight` [rows, cols] with the Hessian [cols, cols] of its inputs."""
        given = require_hessian(self.label, calibration)
        weight = weight.detach().float()
        check_problem(weight, given.hessian)
        scales = float16_scales(self.scales(weight, given))
        rounder = to_nearest(scales, self.levels)
        symbols = quantise_columns(weight, factorise(given.hessian), rounder, self.block_size)
        return encoded_rows(self.label, weight, symbols, scales)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy of a clipped Gaussian: exact for Gaussian rows, near for trained ones."""
        return Cost(gaussian_entropy(self.clip_sigmas / self.levels, self.levels), 8, 2 * shape[0])


class HessianClip(Gptq):
    """SDClip weighted by the Hessian (PR 1412): clip_i = clip_sigmas * std_i * (1 + strength * (r_i - 1)).

    r_i is row i's magnitude weighted by the Hessian, sqrt(sum_j H_jj w_ij^2), over its mean in the matrix. A later
    screen of the same rule found every positive strength worse than none.

    Args:
        bits, clip_sigmas, block_size: as in Gptq.
        strength: 0 is plain SDClip (published: 0.175).
    """

    def __init__(self, *, bits: int, clip_sigmas: float, strength: float = 0.175, block_size: int = 128):
        super().__init__(bits=bits, clip_sigmas=clip_sigmas, block_size=block_size)
        if not 0 <= strength < 1:
            raise ValueError(f"strength={strength}: must be 0 or more and below 1.")
        self.strength = strength
        self.label = f"gptq int{bits} Hessian clip"

    def _with(self, bits: int, clip_sigmas: float) -> Self:
        return type(self)(bits=bits, clip_sigmas=clip_sigmas, strength=self.strength, block_size=self.block_size)

    def scales(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """The step of every row before the rounding to float16; float32 [rows]."""
        activity = calibration.hessian.diagonal().to(weight)
        magnitude = (weight.square() * activity).sum(dim=1).sqrt()
        mean = magnitude.mean()
        relative = magnitude / mean if mean > 0 else torch.ones_like(magnitude)
        return super().scales(weight, calibration) * (1 + self.strength * (relative - 1))

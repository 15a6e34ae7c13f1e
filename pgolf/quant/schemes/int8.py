"""Eight bits and one scale a row, without calibration: the gates of the records, and the baseline of the challenge."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.gptq import MIN_SCALE, float16_scales, safe_steps
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import Cost, encoded_rows, gaussian_entropy, is_matrix, require_finite

QUANTILE_ELEMENTS = 2**24
"""torch.quantile refuses more elements at once."""


def extreme_cost(shape: tuple[int, ...], levels: int) -> Cost:
    """Cost when the largest of a row's Gaussian values, at sqrt(2 ln cols), is at the outermost level."""
    columns = shape[-1] if len(shape) == 2 else math.prod(shape)
    clip = math.sqrt(2 * math.log(max(columns, 2)))
    return Cost(gaussian_entropy(clip / levels, levels), 8, 2 * shape[0] if len(shape) == 2 else 4)


def row_quantiles(magnitudes: Tensor, quantile: float) -> Tensor:
    """The quantile of every row of a matrix, interpolated linearly between its values; float32 [rows]."""
    rows = max(1, QUANTILE_ELEMENTS // magnitudes.shape[1])
    return torch.cat([torch.quantile(chunk, quantile, dim=1) for chunk in magnitudes.split(rows)])


class Int8Rows:
    """Symmetric int8 with one float16 scale a row, its largest value at 127; no calibration.

    The record scripts store their gates so (PR 1736: gates of 1,024 elements and more; PR 1787: 32 and more).

    Args:
        min_elements: smaller tensors are kept in half precision.
    """

    needs_hessian = needs_moments = False
    row_wise = True
    label = "int8 rows"

    def __init__(self, *, min_elements: int = 0):
        if min_elements < 0:
            raise ValueError(f"min_elements={min_elements}: must not be negative.")
        self.min_elements = min_elements

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of `min_elements` elements or more."""
        return is_matrix(shape) and math.prod(shape) >= self.min_elements

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode `weight` [rows, cols]; nothing of the calibration is used."""
        weight = weight.detach().float()
        require_finite(weight)
        scales = float16_scales(weight.abs().amax(dim=1).clamp_min(MIN_SCALE) / 127)
        symbols = torch.round(weight / safe_steps(scales)[:, None]).clamp_(-127, 127)
        return encoded_rows(self.label, weight, symbols, scales)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy when the largest of a row's Gaussian values is at sqrt(2 ln cols)."""
        return extreme_cost(shape, 127)


class SmallInt8(Int8Rows):
    """int8 for the small tensors that records keep in float: matrices by row, all others with one scale (PR 1716, "Path
    A v3": control tensors and small matrices).

    Never demoted to half precision for its size, so a `SmallTensors` rule can bring it small matrices. The largest
    value is at 127; scales are float16.
    """

    row_wise = False
    label = "int8 small"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Every tensor with elements."""
        return math.prod(shape) >= max(self.min_elements, 1)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode a tensor of any shape; nothing of the calibration is used."""
        if weight.ndim == 2:
            return super().quantise(weight)
        values = weight.detach().float()
        require_finite(values)
        scale = float16_scales(values.abs().amax().clamp_min(MIN_SCALE) / 127)
        symbols = torch.round(values / safe_steps(scale)).clamp_(-127, 127)
        return encoded_rows(self.label, weight, symbols, scale)


class Int8Baseline:
    """The export of the challenge's baseline script: int8, each row clipped at a quantile of its magnitudes.

    Matrices have one scale a row, never below 1/127; other tensors have one in all. As published, symbols are made
    with the scale in float32 while float16 is stored.

    Args:
        quantile: share of a row's magnitudes that is not clipped (published: 0.9999984).
    """

    needs_hessian = needs_moments = False
    row_wise = True
    label = "int8 baseline"

    def __init__(self, *, quantile: float = 0.9999984):
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile={quantile}: must lie above 0 and not above 1.")
        self.quantile = quantile

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Every tensor with elements."""
        return math.prod(shape) >= 1

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode a tensor of any shape; nothing of the calibration is used."""
        values = weight.detach().float().cpu()
        require_finite(values)
        if values.ndim == 2:
            clip = row_quantiles(values.abs(), self.quantile)[:, None]
            scales = (clip / 127).clamp_min(1 / 127)
            stored = float16_scales(scales[:, 0])
        else:
            clip = row_quantiles(values.abs().reshape(1, -1), self.quantile)[0]
            scales = stored = clip / 127 if clip > 0 else torch.tensor(1.0)
        clipped = torch.maximum(torch.minimum(values, clip), -clip)
        symbols = torch.round(clipped / scales).clamp_(-127, 127)
        return encoded_rows(self.label, weight, symbols, stored)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy when the largest of a row's Gaussian values is at sqrt(2 ln cols)."""
        return extreme_cost(shape, 127)


class CoarseInt8(Int8Baseline):
    """The baseline's int8 with symbols rounded to multiples: fewer of them occur, so the coder needs fewer bits.

    Source: the record of 2026-03-19 with ten layers, whose blocks 3 to 6 have multiples of 4, within +-127.

    Args:
        multiple: 1 is the baseline (published: 4).
        quantile: as in Int8Baseline.
    """

    def __init__(self, *, multiple: int = 4, quantile: float = 0.9999984):
        super().__init__(quantile=quantile)
        if not 1 <= multiple <= 127:
            raise ValueError(f"multiple={multiple}: must lie between 1 and 127.")
        self.multiple, self.label = multiple, f"int8 by {multiple}"

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode a tensor of any shape; nothing of the calibration is used."""
        encoded = super().quantise(weight)
        coarse = np.round(encoded.parts["symbols"].astype(np.float32) / self.multiple) * self.multiple
        symbols = np.clip(coarse, -127, 127).astype(np.int8)
        return replace(encoded, scheme=self.label, parts=encoded.parts | {"symbols": symbols})

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """That of the baseline with so many times fewer levels."""
        return extreme_cost(shape, 127 // self.multiple)

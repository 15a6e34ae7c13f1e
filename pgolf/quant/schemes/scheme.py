"""What a quantisation scheme is, and what several of them share.

A scheme is a configuration node. To add one, write a module with one class that has the members of `Scheme`, a file in
conf/quant/scheme and, when its parts need new arithmetic at load time, a decoder in `pgolf.quant.encoded`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.hessian import Calibration


@dataclass(frozen=True)
class Cost:
    """What one tensor is expected to need.

    `entropy_bits` per element for an ideal coder, `stored_bits` per element without a coder, and `side_bytes` for the
    whole tensor (row scales), before any coder.
    """

    entropy_bits: float
    stored_bits: float
    side_bytes: int


class Scheme(Protocol):
    """How tensors of one role are stored."""

    label: str
    """Name in reports, for example "gptq int6"."""
    needs_hessian: bool
    """Whether `quantise` wants the Hessian of the inputs."""
    needs_moments: bool
    """Whether `quantise` wants the second moments of the output gradients."""
    row_wise: bool
    """Whether symbols are scaled by row; small matrices are then better kept in half precision."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be stored; if not, it is kept in half precision."""

    def quantise(self, weight: Tensor, calibration: Calibration | None) -> Encoded:
        """Encode; ValueError says what is wrong with the values. `pgolf.quant.encoded.decode` undoes it."""

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Expected size, for estimates before any training."""


@runtime_checkable
class Adjustable(Scheme, Protocol):
    """A scheme with a choice between error and bytes."""

    def coarser(self, factor: float) -> Self:
        """The same scheme with steps `factor` times as wide (finer below one)."""

    def base_steps(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """The steps about as they will be; float32 [rows]. Serves a first guess."""


@runtime_checkable
class Widening(Scheme, Protocol):
    """A scheme whose symbols can have another number of bits."""

    def with_bits(self, bits: int) -> Self:
        """The same scheme with so many bits a symbol, clips as they are."""


def gaussian_entropy(step_sigmas: float, levels: int) -> float:
    """Bits per symbol of clamp(round(x / step), +-levels), x standard normal."""

    def below(edge: float) -> float:
        return 0.5 * math.erfc(-edge * step_sigmas / math.sqrt(2))

    edges = [-math.inf, *(level - 0.5 for level in range(1 - levels, levels + 1)), math.inf]
    chances = (below(high) - below(low) for low, high in pairwise(edges))
    return -sum(chance * math.log2(chance) for chance in chances if chance > 0)


def require_finite(weight: Tensor) -> None:
    """Raise ValueError when a value is infinite or not a number."""
    if not torch.isfinite(weight).all():
        raise ValueError("the tensor holds values that are not finite.")


def require_hessian(label: str, calibration: Calibration | None) -> Calibration:
    """The calibration; ValueError when there is none."""
    if calibration is None:
        raise ValueError(f"{label} needs the Hessian of the inputs, and none was collected.")
    return calibration


def require_bits(bits: int, least: int = 2, most: int = 8) -> None:
    """Raise ValueError unless symbols of this width fit the scheme."""
    if not least <= bits <= most:
        raise ValueError(f"bits={bits}: symbols have {least} to {most} bits.")


def require_positive(**settings: float) -> None:
    """Raise ValueError naming the setting that is not a positive number."""
    for name, value in settings.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value}: must be a positive number.")


def is_matrix(shape: tuple[int, ...], columns: int = 1) -> bool:
    """Whether a tensor of this shape is a matrix with at least so many columns."""
    return len(shape) == 2 and shape[0] >= 1 and shape[1] >= columns


def encoded_rows(label: str, weight: Tensor, symbols: Tensor, scales: Tensor, **more: Tensor) -> Encoded:
    """Symbols and scales (and further parts) as the parts of decoder "rows"; symbols are narrowed to int8."""
    tensors = {"symbols": symbols.to(torch.int8), "scales": scales, **more}
    parts = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    return Encoded("rows", label, tuple(weight.shape), parts)

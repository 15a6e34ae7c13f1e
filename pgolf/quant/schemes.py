"""Quantisation schemes: each turns one tensor into symbols and side information.

A scheme is a configuration node. To add one, write a class with the members of `Scheme` and, when
its parts need new arithmetic at load time, a decoder in `pgolf.quant.encoded`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.gptq import MIN_SCALE, gptq_quantise, safe_steps


@dataclass(frozen=True)
class Cost:
    """What one tensor is expected to need.

    `entropy_bits` per element for an ideal coder, `stored_bits` per element without a coder, and
    `side_bytes` for the whole tensor (row scales), before any coder.
    """

    entropy_bits: float
    stored_bits: int
    side_bytes: int


class Scheme(Protocol):
    """How tensors of one role are stored."""

    label: str
    """Name in reports, for example "gptq int6"."""
    needs_hessian: bool
    """Whether `quantise` wants the Hessian of the inputs."""
    row_wise: bool
    """Whether symbols are scaled by row; small matrices are then better kept in half precision."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be stored; if not, it is kept in half precision."""

    def quantise(self, weight: Tensor, hessian: Tensor | None) -> Encoded:
        """Encode; ValueError says what is wrong with the values."""

    def dequantise(self, encoded: Encoded) -> Tensor:
        """The tensor that a reader of the artifact gets, before the cast to the template dtype."""

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Expected size, for estimates before any training."""


def gaussian_entropy(step_sigmas: float, levels: int) -> float:
    """Bits per symbol of clamp(round(x / step), +-levels), x standard normal."""

    def below(edge: float) -> float:
        return 0.5 * math.erfc(-edge * step_sigmas / math.sqrt(2))

    edges = [-math.inf, *(level - 0.5 for level in range(1 - levels, levels + 1)), math.inf]
    chances = (below(high) - below(low) for low, high in pairwise(edges))
    return -sum(chance * math.log2(chance) for chance in chances if chance > 0)


def _check_finite(weight: Tensor) -> None:
    if not torch.isfinite(weight).all():
        raise ValueError("the tensor holds values that are not finite.")


def _rows(scheme: str, weight: Tensor, symbols: Tensor, scales: Tensor) -> Encoded:
    parts = {"symbols": symbols.cpu().numpy(), "scales": scales.cpu().numpy()}
    return Encoded("rows", scheme, tuple(weight.shape), parts)


class Gptq:
    """GPTQ with the standard-deviation clip of the records (PR 1394), see `pgolf.quant.gptq`.

    Args:
        bits: 2 to 8 bits a symbol.
        clip_sigmas: standard deviations of a row that reach the outermost level; larger means
            coarser steps and fewer bytes after the entropy coder.
        block_size: columns handled together; changes the speed only.
    """

    needs_hessian = True
    row_wise = True

    def __init__(self, *, bits: int, clip_sigmas: float, block_size: int = 128):
        if not 2 <= bits <= 8:
            raise ValueError(f"bits={bits}: GPTQ symbols have 2 to 8 bits.")
        if not (math.isfinite(clip_sigmas) and clip_sigmas > 0):
            raise ValueError(f"clip_sigmas={clip_sigmas}: must be a positive number.")
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: must be 1 or more.")
        self.bits, self.clip_sigmas, self.block_size = bits, clip_sigmas, block_size
        self.label = f"gptq int{bits}"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of two or more columns."""
        return len(shape) == 2 and shape[0] >= 1 and shape[1] >= 2

    def quantise(self, weight: Tensor, hessian: Tensor | None) -> Encoded:
        """Encode `weight` [rows, cols] with `hessian` [cols, cols]."""
        if hessian is None:
            raise ValueError(f"{self.label} needs the Hessian of the inputs, and none was collected.")
        symbols, scales = gptq_quantise(
            weight,
            hessian,
            clip_sigmas=self.clip_sigmas,
            bits=self.bits,
            block_size=self.block_size,
        )
        return _rows(self.label, weight, symbols, scales)

    def dequantise(self, encoded: Encoded) -> Tensor:
        """float32 [rows, cols]."""
        return decode(encoded)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy of a clipped Gaussian: exact for Gaussian rows, near for trained ones."""
        levels = 2 ** (self.bits - 1) - 1
        entropy = gaussian_entropy(self.clip_sigmas / levels, levels)
        return Cost(entropy, 8, 2 * shape[0])


class Int8Rows:
    """Symmetric int8 with one float16 scale a row, its largest value at 127; no calibration.

    The record scripts store their gates so (PR 1736: gates of 1,024 elements and more; PR 1787: 32
    and more).

    Args:
        min_elements: smaller tensors are kept in half precision.
    """

    needs_hessian = False
    row_wise = True
    label = "int8 rows"

    def __init__(self, *, min_elements: int = 0):
        if min_elements < 0:
            raise ValueError(f"min_elements={min_elements}: must not be negative.")
        self.min_elements = min_elements

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Matrices of `min_elements` elements or more."""
        return len(shape) == 2 and shape[1] >= 1 and math.prod(shape) >= self.min_elements

    def quantise(self, weight: Tensor, hessian: Tensor | None = None) -> Encoded:
        """Encode `weight` [rows, cols]; the Hessian is not used."""
        weight = weight.detach().float()
        _check_finite(weight)
        largest = weight.abs().amax(dim=1).clamp_min(MIN_SCALE)
        scales = (largest / 127).half()
        if not torch.isfinite(scales).all():
            raise ValueError("a row is too large: its step does not fit in float16.")
        symbols = torch.round(weight / safe_steps(scales)[:, None]).clamp_(-127, 127)
        return _rows(self.label, weight, symbols.to(torch.int8), scales)

    def dequantise(self, encoded: Encoded) -> Tensor:
        """float32 [rows, cols]."""
        return decode(encoded)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Entropy when the largest of a row's Gaussian values is at sqrt(2 ln cols)."""
        clip = math.sqrt(2 * math.log(max(shape[1], 2)))
        return Cost(gaussian_entropy(clip / 127, 127), 8, 2 * shape[0])


class Half:
    """float16, the published choice for every small or one-dimensional float tensor."""

    needs_hessian = False
    row_wise = False
    label = "float16"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Any shape."""
        return True

    def quantise(self, weight: Tensor, hessian: Tensor | None = None) -> Encoded:
        """Round to float16; ValueError when a value exceeds its range (65504)."""
        _check_finite(weight)
        values = weight.detach().half()
        if not torch.isfinite(values).all():
            raise ValueError("a value exceeds the range of float16; use pgolf.quant.schemes.Float32.")
        return Encoded("plain", self.label, tuple(weight.shape), {"values": values.cpu().numpy()})

    def dequantise(self, encoded: Encoded) -> Tensor:
        """float16 in the tensor's shape."""
        return decode(encoded)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Sign and mantissa are noise, the exponents of Gaussian values need some 2.5 bits."""
        return Cost(13.5, 16, 0)


class Float32:
    """float32 without loss, for reference artifacts and for tensors that must not be rounded."""

    needs_hessian = False
    row_wise = False
    label = "float32"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Any shape."""
        return True

    def quantise(self, weight: Tensor, hessian: Tensor | None = None) -> Encoded:
        """Store float32 values; float16 and bfloat16 tensors survive exactly."""
        values = weight.detach().float().cpu().numpy()
        return Encoded("plain", self.label, tuple(weight.shape), {"values": values})

    def dequantise(self, encoded: Encoded) -> Tensor:
        """float32 in the tensor's shape."""
        return decode(encoded)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Sign and mantissa are noise, the exponents of Gaussian values need some 2.5 bits."""
        return Cost(26.5, 32, 0)


def encode_exact(tensor: Tensor) -> Encoded:
    """Store an integer or boolean tensor (a buffer, never a weight) as it is."""
    label = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().cpu().contiguous().numpy()
    return Encoded("plain", label, tuple(tensor.shape), {"values": values})

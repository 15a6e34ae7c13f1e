"""Ternary and binary weights, a scale for each group, the symbols packed (records of 2026-03-24)."""

import lzma
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import Cost, require_finite

Packing = Literal["base3", "bits", "smaller", "symbols"]
ScaleDtype = Literal["float16", "float32"]


def pack_base3(symbols: np.ndarray) -> np.ndarray:
    """Symbols -1, 0, 1 as five base-3 digits a byte, the first the least significant; the end is padded with zeros."""
    digits = (symbols.reshape(-1) + 1).astype(np.uint8)
    digits = np.concatenate([digits, np.ones(-len(digits) % 5, np.uint8)])
    return (digits.reshape(-1, 5) * np.array([1, 3, 9, 27, 81], np.uint8)).sum(axis=1).astype(np.uint8)


def pack_bits(bits: np.ndarray) -> np.ndarray:
    """Booleans as bits, the first the least significant; the end is padded with zeros."""
    return np.packbits(bits.reshape(-1).astype(np.uint8), bitorder="little")


def _lzma_bytes(parts: dict[str, np.ndarray]) -> int:
    """What LZMA makes of all parts together."""
    return len(lzma.compress(b"".join(part.tobytes() for part in parts.values()), preset=9))


def _grouped(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Values in row-major order as float64 [groups, group_size], the last group padded with zeros, and the number of
    elements of each group."""
    values = weight.detach().double().reshape(-1)
    padded = torch.nn.functional.pad(values, (0, -len(values) % group_size)).reshape(-1, group_size)
    counts = torch.full((len(padded), 1), float(group_size), dtype=torch.float64, device=values.device)
    if len(padded):
        counts[-1] = len(values) - group_size * (len(padded) - 1)
    return padded, counts


class Ternary:
    """Each value as -1, 0 or 1 times the scale of its group; exact for weights that are ternary already.

    Args:
        group_size: elements of one scale, in row-major order; 0: one scale for the tensor.
        threshold: values up to this share of the group's mean magnitude become zero. 0.5 is rounding, as in the
            record; another published study trains with 0.7.
        keep_mean: the scale is the mean magnitude over the share of values that are not zero, so that the mean
            magnitude of a group survives (the record's "shrinkage fix"). False: the mean magnitude itself.
        packing: base3, five symbols a byte; bits, a mask and the signs; smaller, of these two the one that LZMA makes
            less of, as in the record; symbols, one a byte, which suits an entropy coder best.
        scale: dtype of the scales. float32 keeps the scales of training exactly.
    """

    needs_hessian = needs_moments = row_wise = False

    def __init__(
        self,
        *,
        group_size: int = 128,
        threshold: float = 0.5,
        keep_mean: bool = True,
        packing: Packing = "base3",
        scale: ScaleDtype = "float16",
    ):
        if group_size < 0:
            raise ValueError(f"group_size={group_size}: must be 1 or more, or 0 for the whole tensor.")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: must lie between 0 and 1.")
        self.group_size, self.threshold, self.keep_mean = group_size, threshold, keep_mean
        self.packing, self.scale = packing, scale
        self.label = "ternary"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Every tensor with elements."""
        return math.prod(shape) >= 1

    def _size(self, shape: tuple[int, ...]) -> int:
        return self.group_size or math.prod(shape)

    def levels_of(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols -1, 0, 1 as float64 [groups, group size], the last group padded with zeros, and the scale of each
        group in the dtype that is stored, on the device of `weight`, a tensor of any shape.

        Training rounds by this and the export does, so both have the same scales. Sums are float64: exact for groups
        of 128 float32 values, unless magnitudes differ more than two million times, so no device's order of summing
        shows. With keep_mean, what comes back from here goes to itself, to the last bit.
        """
        values, counts = _grouped(weight, self._size(tuple(weight.shape)))
        symbols, scales = self._levels(values, counts)
        return symbols, scales[:, 0].to(getattr(torch, self.scale))

    def _levels(self, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols [groups, group size] and scales [groups, 1] of values [groups, group size], all float64."""
        mean = values.abs().sum(dim=1, keepdim=True) / counts
        symbols = torch.where(values.abs() > self.threshold * mean, values.sign(), torch.zeros_like(values))
        share = symbols.abs().sum(dim=1, keepdim=True) / counts
        kept = share.clamp_min(1e-300) if self.keep_mean else torch.ones_like(share)
        return symbols, torch.where(share > 0, mean / kept, torch.zeros_like(mean))

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Encode a tensor of any shape; nothing of the calibration is used."""
        require_finite(weight)
        shape, size = tuple(weight.shape), self._size(tuple(weight.shape))
        levels, stored = self.levels_of(weight.cpu())
        if not torch.isfinite(stored).all():
            raise ValueError(f"a scale exceeds the range of {self.scale}; use scale=float32.")
        symbols = levels.reshape(-1)[: weight.numel()].to(torch.int8).numpy()
        parts = {"scales": stored.numpy(), "group_size": np.array(size, np.int32)}
        return Encoded("groups", self.label, shape, parts | self._packed(symbols, shape))

    def _packed(self, symbols: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        if self.packing == "symbols":
            return {"symbols": symbols.reshape(shape)}
        base3 = {"base3": pack_base3(symbols)}
        bits = {"mask": pack_bits(symbols != 0), "signs": pack_bits(symbols[symbols != 0] > 0)}
        if self.packing == "smaller":
            return min(base3, bits, key=_lzma_bytes)
        return base3 if self.packing == "base3" else bits

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Base 3 takes 1.6 bits, of which little is redundant; Gaussian values have 1.54 bits of entropy."""
        groups = math.ceil(math.prod(shape) / self._size(shape))
        stored = {"base3": 1.6, "bits": 1.69, "smaller": 1.6, "symbols": 8.0}[self.packing]
        return Cost(1.54, stored, groups * (2 if self.scale == "float16" else 4))


class Binary(Ternary):
    """Each value as its sign (zero counts as positive) times the mean magnitude of its group: one bit a weight.

    Args:
        group_size, scale: as in Ternary.
    """

    def __init__(self, *, group_size: int = 128, scale: ScaleDtype = "float16"):
        super().__init__(group_size=group_size, packing="bits", scale=scale)
        self.label = "binary"

    def _levels(self, values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Symbols [groups, group size] and scales [groups, 1] of values [groups, group size], all float64."""
        mean = values.abs().sum(dim=1, keepdim=True) / counts
        return torch.where(values < 0, -torch.ones_like(values), torch.ones_like(values)), mean

    def _packed(self, symbols: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {"signs": pack_bits(symbols > 0)}

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """One bit, without redundancy."""
        return Cost(1.0, 1.0, super().cost(shape).side_bytes)

"""Values as they are, rounded to a float format at most: float32, bfloat16, float16, float8."""

import numpy as np
import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import Cost, require_finite


class Plain:
    """Every value by itself; base of the float formats."""

    needs_hessian = needs_moments = row_wise = False
    label: str
    bits: tuple[float, int]
    """Bits a value, coded and not. Sign and mantissa are noise; the exponents of Gaussian values need some 2.5."""

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Any shape."""
        return True

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Noise and exponents, see `bits`."""
        return Cost(*self.bits, 0)


class Half(Plain):
    """float16, the published choice for every small or one-dimensional float tensor."""

    label, bits = "float16", (13.5, 16)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Round to float16; ValueError when a value exceeds its range (65504)."""
        require_finite(weight)
        values = weight.detach().half()
        if not torch.isfinite(values).all():
            raise ValueError("a value exceeds the range of float16; use pgolf.quant.schemes.Float32.")
        return Encoded("plain", self.label, tuple(weight.shape), {"values": values.cpu().numpy()})


class BFloat16(Plain):
    """bfloat16: the range of float32, eight bits of precision."""

    label, bits = "bfloat16", (10.5, 16)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Round to bfloat16; ValueError when a value is not finite or rounds to infinity."""
        require_finite(weight)
        values = weight.detach().to(torch.bfloat16).cpu().contiguous()
        require_finite(values)
        bits = values.view(torch.int16).numpy().view(np.uint16)
        return Encoded("bfloat16", self.label, tuple(weight.shape), {"values": bits})


class Float32(Plain):
    """float32 without loss, for reference artifacts and for tensors that must not be rounded."""

    label, bits = "float32", (26.5, 32)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Store float32 values; float16 and bfloat16 tensors survive exactly."""
        values = weight.detach().float().cpu().numpy()
        return Encoded("plain", self.label, tuple(weight.shape), {"values": values})


class Float8(Plain):
    """float8 with four bits of exponent and three of mantissa (e4m3, no scale), as in the ternary record of 2026-03-24.

    The largest value is 448, the least above zero 2^-9.
    """

    label, bits = "float8", (6.5, 8)

    def quantise(self, weight: Tensor, calibration: Calibration | None = None) -> Encoded:
        """Round to float8; ValueError when a value is beyond 448."""
        require_finite(weight)
        values = weight.detach().float()
        limit = torch.finfo(torch.float8_e4m3fn).max
        if values.numel() and values.abs().max() > limit:
            raise ValueError(f"a value exceeds the range of float8 ({limit:g}); use float16.")
        bits = values.to(torch.float8_e4m3fn).cpu().contiguous().view(torch.uint8).numpy()
        return Encoded("float8", self.label, tuple(weight.shape), {"values": bits})


def encode_exact(tensor: Tensor) -> Encoded:
    """Store an integer or boolean tensor (a buffer, never a weight) as it is."""
    label = str(tensor.dtype).removeprefix("torch.")
    values = tensor.detach().cpu().contiguous().numpy()
    return Encoded("plain", label, tuple(tensor.shape), {"values": values})

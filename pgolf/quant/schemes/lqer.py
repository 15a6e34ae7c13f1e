"""LQER: what quantisation lost of a few tensors, given back as a product of two small matrices (PR 1851, 1855).

For the tensors with the largest error E = W - W' the best rank-r approximation of E is stored in a few bits and added
when the artifact is loaded.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.gptq import MIN_SCALE, safe_steps
from pgolf.quant.schemes.scheme import require_bits


def leading_factors(error: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [rows, rank] and B [rank, cols] whose product is the best approximation of `error` [rows, cols].

    A holds the left singular vectors times the singular values, B the right ones. A singular pair is determined up to
    its sign, and which one a library returns differs: here the entry of each column of A that is largest in magnitude
    is negative, which is the side that the asymmetric packing represents without clipping.
    """
    left, values, right = torch.linalg.svd(error.float(), full_matrices=False)
    rank = min(rank, len(values))
    factor_a, factor_b = left[:, :rank] * values[:rank], right[:rank]
    extremes = factor_a.gather(0, factor_a.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(extremes > 0, -1.0, 1.0)
    return factor_a * signs, factor_b * signs[0][:, None]


def pack_symmetric(factor_a: Tensor, factor_b: Tensor, bits: int) -> dict[str, Tensor]:
    """Both factors with a scale for each row, its largest value at the outermost level of `bits` bits."""
    levels = 2 ** (bits - 1) - 1
    parts: dict[str, Tensor] = {}
    for name, factor in (("a", factor_a), ("b", factor_b)):
        scales = (factor.abs().amax(dim=1) / levels).clamp_min(MIN_SCALE).half()
        symbols = torch.round(factor / safe_steps(scales)[:, None]).clamp_(-levels, levels)
        parts |= {f"factor_{name}": symbols.to(torch.int8), f"scales_{name}": scales}
    return parts


def pack_asymmetric(factor_a: Tensor, factor_b: Tensor, group_size: int) -> dict[str, Tensor]:
    """A in two bits (-2 ... 1) with one scale, B in four (-8 ... 7) with one for each group of its elements.

    The extremes of A lie at 1.5 steps: the positive ones are clipped to 1. The elements of B must fill the groups.
    """
    scale_a = (factor_a.abs().amax().clamp_min(MIN_SCALE) / 1.5).half()
    symbols_a = torch.round(factor_a / safe_steps(scale_a)).clamp_(-2, 1)
    groups = factor_b.reshape(-1, group_size)
    scales_b = (groups.abs().amax(dim=1).clamp_min(MIN_SCALE) / 7.5).half()
    symbols_b = torch.round(groups / safe_steps(scales_b)[:, None]).clamp_(-8, 7)
    return {
        "factor_a": symbols_a.to(torch.int8),
        "scales_a": scale_a,
        "factor_b": symbols_b.reshape(factor_b.shape).to(torch.int8),
        "scales_b": scales_b,
    }


class Lqer:
    """Corrects the tensors with the largest error.

    Args:
        rank: columns of the first factor (published: 4).
        tensors: how many tensors are corrected, those with the largest norm of the error first (published: 3).
        bits: bits of both factors in symmetric packing (published: 4).
        group_size: elements of the second factor for each scale of the asymmetric packing (published: 64); a tensor
            whose factor does not fill its groups is packed symmetrically, as published. 0: always symmetric.
    """

    def __init__(self, *, rank: int = 4, tensors: int = 3, bits: int = 4, group_size: int = 64):
        require_bits(bits)
        for name, value, least in (("rank", rank, 1), ("tensors", tensors, 1), ("group_size", group_size, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: must be {least} or more.")
        self.rank, self.tensors, self.bits, self.group_size = rank, tensors, bits, group_size

    def choose(self, errors: Mapping[str, float]) -> list[str]:
        """The names of the tensors to correct, given the norm of each one's error; the first wins a tie."""
        ranked = sorted(errors, key=lambda name: -errors[name])
        return ranked[: self.tensors]

    def correct(self, encoded: Encoded, weight: Tensor) -> Encoded:
        """`encoded` (decoder "rows") with the factors of its error added to its parts."""
        if encoded.decoder != "rows":
            raise ValueError(f"LQER corrects symbols with scales, not tensors stored as {encoded.scheme}.")
        error = weight.detach().float().cpu() - decode(encoded).float()
        parts, kind = self.pack(*leading_factors(error, self.rank))
        arrays = {name: tensor.contiguous().numpy() for name, tensor in parts.items()}
        return replace(encoded, scheme=f"{encoded.scheme} + {kind}", parts=encoded.parts | arrays)

    def pack(self, factor_a: Tensor, factor_b: Tensor) -> tuple[dict[str, Tensor], str]:
        """The parts of the two factors, and the name of the packing."""
        if self.group_size and factor_b.numel() % self.group_size == 0:
            return pack_asymmetric(factor_a, factor_b, self.group_size), "lqer asymmetric"
        return pack_symmetric(factor_a, factor_b, self.bits), "lqer"

    def extra_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of the factors of a tensor before any coder, a symbol in one byte; for estimates."""
        return self.rank * sum(shape) + 2 * (shape[0] + self.rank)

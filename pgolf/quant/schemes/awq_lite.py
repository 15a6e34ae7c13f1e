"""AWQ-lite: the most active groups of columns get eight bits (PR 1908)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pgolf.quant.encoded import Encoded
from pgolf.quant.gptq import check_problem, factorise, float16_scales, quantise_columns, to_nearest
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes.scheme import encoded_rows, require_bits, require_hessian
from pgolf.quant.schemes.sdclip import Gptq


class AwqLite:
    """Chooses the groups of columns, over all tensors that GPTQ quantises, whose error would matter most.

    A group's score is the sum over its columns of the root mean square of the input times the mean magnitude of the
    column's weights.

    Args:
        groups: groups protected, in all tensors together (published: 1).
        group_size: columns of a group; what remains at the end of a row is no group (published: 64).
        bits: bits of the protected groups (published: 8).
    """

    def __init__(self, *, groups: int = 1, group_size: int = 64, bits: int = 8):
        require_bits(bits)
        for name, value in (("groups", groups), ("group_size", group_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be 1 or more.")
        self.groups, self.group_size, self.bits = groups, group_size, bits

    def scores(self, weight: Tensor, calibration: Calibration) -> Tensor:
        """The score of every full group of columns of `weight` [rows, cols]; float32 [cols // group_size]."""
        columns = weight.detach().float().abs().mean(dim=0) * calibration.input_rms().to(weight.device)
        full = len(columns) // self.group_size
        return columns[: full * self.group_size].reshape(full, self.group_size).sum(dim=1)

    def choose(self, scores: Mapping[str, Tensor]) -> dict[str, list[int]]:
        """First columns of the protected groups of every tensor that has some, given the scores of all."""
        ranked = sorted(
            (
                (-float(score), order, index)
                for order, one in enumerate(scores.values())
                for index, score in enumerate(one)
            ),
        )
        names, chosen = list(scores), dict[str, list[int]]()
        for _, order, index in ranked[: self.groups]:
            chosen.setdefault(names[order], []).append(index * self.group_size)
        return {name: sorted(starts) for name, starts in chosen.items()}

    def protect(self, scheme: Gptq, starts: list[int]) -> "ProtectedGptq":
        """`scheme` with the groups that begin at the columns `starts` protected."""
        return ProtectedGptq(scheme, starts, self.group_size, self.bits)


class ProtectedGptq:
    """GPTQ of one tensor in which some groups of columns have more levels, on finer steps of the same clip."""

    needs_hessian = row_wise = True
    needs_moments = False

    def __init__(self, scheme: Gptq, starts: list[int], group_size: int, bits: int):
        self.scheme, self.starts, self.group_size, self.bits = scheme, starts, group_size, bits
        self.label = f"{scheme.label} + int{bits} groups"
        self.accepts, self.cost = scheme.accepts, scheme.cost

    def quantise(self, weight: Tensor, calibration: Calibration | None) -> Encoded:
        """Encode `weight` [rows, cols] with the Hessian [cols, cols] of its inputs."""
        given = require_hessian(self.label, calibration)
        weight = weight.detach().float()
        check_problem(weight, given.hessian)
        levels = 2 ** (self.bits - 1) - 1
        coarse = self.scheme.scales(weight, given)
        scales, fine = float16_scales(coarse), float16_scales(coarse * self.scheme.levels / levels)
        usual, protected = to_nearest(scales, self.scheme.levels), to_nearest(fine, levels)
        columns = {start + offset for start in self.starts for offset in range(self.group_size)}

        def rounder(column: Tensor, index: int) -> tuple[Tensor, Tensor]:
            return (protected if index in columns else usual)(column, index)

        symbols = quantise_columns(weight, factorise(given.hessian), rounder, self.scheme.block_size)
        starts, size = torch.tensor(self.starts, dtype=torch.int32), torch.tensor(self.group_size, dtype=torch.int32)
        return encoded_rows(
            self.label, weight, symbols, scales, group_scales=fine, group_starts=starts, group_size=size
        )

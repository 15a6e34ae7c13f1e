"""One artifact in memory, made again for every try of its size."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pgolf.console import Console
from pgolf.errors import UserError
from pgolf.quant import packer
from pgolf.quant.coders import CODERS
from pgolf.quant.container import StoredTensor
from pgolf.quant.header import Header
from pgolf.quant.hessian import Calibration
from pgolf.quant.pruning import Pruning
from pgolf.quant.rotation import Site, marked
from pgolf.quant.rules import Choice
from pgolf.quant.schemes.scheme import Adjustable
from pgolf.quant.target import fill, first_guess

if TYPE_CHECKING:
    from pgolf.quant.compress import Compressor


class Attempt:
    """One artifact in memory, made again for every try of its size."""

    def __init__(
        self,
        tool: "Compressor",
        state: Mapping[str, Tensor],
        calibrations: Mapping[str, Calibration],
        metadata: dict[str, Any],
        sites: Mapping[str, Site],
        console: Console,
    ):
        self._tool, self._state, self._calibrations = tool, state, calibrations
        self._metadata, self._sites, self._console = metadata, sites, console
        self.stored: list[StoredTensor] = []
        self.header: Header
        self.coded: list[bytes] = []

    def make(self, choices: list[Choice]) -> int:
        """Quantise and pack; the size of the file."""
        tool = self._tool
        choices = tool.protect(choices, self._state, self._calibrations)
        return self._pack(tool.quantise(choices, self._state, self._calibrations, self._console))

    def prune(self, pruning: Pruning) -> None:
        """Make the artifact with the symbols that `pruning` leaves."""
        made, size = self.stored, packer.file_size(self.header, self.coded)
        pruned = pruning.symbols(made, size, self._pack, self._console)
        if pruned is not self.stored:
            self._pack(pruned)

    def _pack(self, stored: list[StoredTensor]) -> int:
        """Pack what was quantised; the size of the file."""
        tool, self.stored = self._tool, stored
        program = CODERS[tool.coder].program
        needed = f" (an external program, which loading needs too: {shutil.which(program)})" if program else ""
        self._console.say(f"packing {len(self.stored)} tensors with {tool.coder}{needed}")
        self.header, self.coded = packer.build(
            [replace(one, encoded=marked(one.encoded, self._sites.get(one.name))) for one in self.stored],
            self._metadata,
            coder=tool.coder,
            byte_shuffle=tool.byte_shuffle,
            row_order=tool.row_order,
        )
        return packer.file_size(self.header, self.coded)

    def fill(self, choices: list[Choice], target_bytes: int) -> None:
        """Make the artifact with the steps that fill the target."""
        adjustable = _adjustable(choices)
        missing = [name for name in adjustable if name not in self._calibrations]
        if missing or not adjustable:
            what = f"tensor {missing[0]} was not calibrated" if missing else "no tensor has steps that could change"
            raise UserError(f"quant.target_bytes={target_bytes:,} cannot be filled: {what}.")
        problems, made = [], math.nan
        for name, scheme in adjustable.items():
            weight = self._state[name].detach().float().cpu()
            problems.append((weight, scheme.base_steps(weight, self._calibrations[name].cpu())))
        weights = sum(weight.numel() for weight, _ in problems)

        def size_of(factor: float) -> int:
            nonlocal made
            scaled = {name: scheme.coarser(factor) for name, scheme in adjustable.items()}
            made = factor
            return self.make([replace(one, scheme=scaled.get(one.name, one.scheme)) for one in choices])

        chosen = fill(size_of, first_guess(problems, 8 * target_bytes), target_bytes, weights, self._console)
        if made != chosen:
            size_of(chosen)


def _adjustable(choices: list[Choice]) -> dict[str, Adjustable]:
    """The schemes with steps that can change, by the name of the tensor."""
    return {one.name: one.scheme for one in choices if isinstance(one.scheme, Adjustable)}

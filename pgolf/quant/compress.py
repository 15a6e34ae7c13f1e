"""From a state dict to an artifact: rules choose a scheme for each tensor, and a coder packs the symbols."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from pgolf.console import Console, Silent
from pgolf.errors import UserError
from pgolf.model.gpt import GPT
from pgolf.model.roles import parameter_roles
from pgolf.quant import packer
from pgolf.quant.allocation import Allocation, allocated
from pgolf.quant.attempt import Attempt
from pgolf.quant.budget import Reading
from pgolf.quant.calibration import Text, TrainingText
from pgolf.quant.coders import CODERS
from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import Encoded
from pgolf.quant.estimate import by_class, estimate
from pgolf.quant.hessian import Calibration
from pgolf.quant.outcome import class_rows, error_norm, tensor_row
from pgolf.quant.packer import RowOrder
from pgolf.quant.pruning import Pruning
from pgolf.quant.qat import Calibrate, Qat, WeightRounding
from pgolf.quant.rotation import Online as Turns
from pgolf.quant.rotation import Site
from pgolf.quant.rotations import Rotation
from pgolf.quant.rules import Choice, Chooser, Rule, SmallTensors
from pgolf.quant.schemes.awq_lite import AwqLite
from pgolf.quant.schemes.lqer import Lqer
from pgolf.quant.schemes.plain import encode_exact
from pgolf.quant.schemes.scheme import Scheme
from pgolf.quant.schemes.sdclip import Gptq
from pgolf.quant.temperature import Temperature

__all__ = ["Compressor", "Rule", "SmallTensors", "by_class"]

PROTECTED_BITS = 8
"""Tensors that have as many bits already are not protected by AWQ-lite."""


class Compressor:
    """Quantises by role and name, and writes the artifact.

    Args:
        matrix, embedding, head, scalar, gate: the scheme of each role; None: the model must have no
            such tensor.
        coder: entropy coder, a key of `pgolf.quant.coders.CODERS`.
        qat: rounding of the weights while they are trained; None: none.
        calibration: the text behind the Hessians, and which processes read it; None: training text, all of them.
        calibration_batches: how many batches of it, where it leaves that open (read by the run, unused without GPTQ).
        limit_bytes: budget of artifact and code together, decimal bytes.
        reading: the code that counts: wrapped, as one compressed file, or shipped, as the archive beside the artifact
            (`pgolf.quant.budget`).
        min_quantised_elements: a row-wise scheme of matrix, embedding or head keeps smaller tensors
            in float16. The published scripts quantise above 65,536 elements, so their value is
            65,537.
        rules: name -> Rule, exceptions to the role's scheme; the first that matches a tensor wins.
        row_order: stored, or similarity: rows of symbols sorted so that like rows are neighbours, for coders that look
            for repetitions (PR 1855); their places are stored. It takes a while: 48 s at the published size.
        byte_shuffle: whether values of two and four bytes are split into byte planes before the
            coder.
        target_bytes: the artifact's size, filled to 0.1 % by the width of all steps: each try quantises and packs
            anew. null: the steps are those of the schemes; the sensitivity schemes need a target.
        protection: groups of columns that get more bits; None: none.
        correction: low-rank corrections of the tensors with the largest error; None: none.
        rotation: of the weights before they are quantised; None: none.
        allocation: other bits for some matrices than their scheme has; None: none.
        pruning: of weights or symbols; None: none.
        temperature: of all logits, fitted on training text after the artifact is written; None: one.
    """

    def __init__(
        self,
        *,
        matrix: Scheme,
        embedding: Scheme,
        head: Scheme | None,
        scalar: Scheme,
        gate: Scheme | None,
        coder: str,
        calibration_batches: int,
        limit_bytes: int = 16_000_000,
        reading: Reading = "wrapped",
        min_quantised_elements: int = 65_537,
        rules: dict[str, Rule] | None = None,
        row_order: RowOrder = "stored",
        byte_shuffle: bool = True,
        target_bytes: int | None = None,
        protection: AwqLite | None = None,
        correction: Lqer | None = None,
        rotation: Rotation | None = None,
        calibration: Text | None = None,
        qat: Qat | None = None,
        allocation: Allocation | None = None,
        pruning: Pruning | None = None,
        temperature: Temperature | None = None,
    ):
        if coder not in CODERS:
            raise ValueError(f"coder={coder!r}: choose one of {', '.join(CODERS)}.")
        program = CODERS[coder].program
        if program is not None and shutil.which(program) is None:
            raise ValueError(
                f"coder={coder!r} needs the program {program}, which is not installed: install it (for example "
                f"`apt-get install {program}`), or choose quant.coder=rans, which is smaller."
            )
        if reading not in get_args(Reading):
            raise ValueError(f"reading={reading!r}: choose one of {', '.join(get_args(Reading))}.")
        for key, value in (
            ("calibration_batches", calibration_batches),
            ("limit_bytes", limit_bytes),
            ("min_quantised_elements", min_quantised_elements),
        ):
            if value < 1:
                raise ValueError(f"{key}={value}: must be 1 or more.")
        if target_bytes is not None and target_bytes < 1:
            raise ValueError(f"target_bytes={target_bytes}: must be 1 or more, or null.")
        schemes = {"matrix": matrix, "embedding": embedding, "head": head, "scalar": scalar, "gate": gate}
        self.chooser = Chooser(schemes, rules or {}, min_quantised_elements)
        every = [*schemes.values(), *(rule.scheme for rule in self.chooser.rules.values())]
        homeless = next((one for one in every if one is not None and one.needs_moments), None)
        if target_bytes is None and homeless is not None:
            raise ValueError(
                f"target_bytes=null: the steps of {homeless.label} follow from the size of the artifact; "
                "set quant.target_bytes."
            )
        self.target_bytes = target_bytes
        self.coder, self.byte_shuffle = coder, byte_shuffle
        self.row_order: RowOrder = row_order
        self.calibration, self.calibration_batches = calibration or TrainingText(), calibration_batches
        self.limit_bytes, self.reading = limit_bytes, reading
        self.protection, self.correction = protection, correction
        self.rotation, self.qat = rotation, qat
        self.allocation, self.pruning, self.temperature = allocation, pruning, temperature

    def _choose(self, state: Mapping[str, Tensor], roles: Mapping[str, str]) -> list[Choice]:
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        exact = {name for name, tensor in state.items() if not tensor.is_floating_point()}
        return self.chooser.choose(shapes, roles, exact)

    def hessian_names(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> list[str]:
        """Names of the tensors whose scheme needs a Hessian; empty: no calibration is needed."""
        choices = self.chooser.choose(shapes, roles, set(shapes) - set(roles))
        return [c.name for c in choices if c.scheme is not None and c.scheme.needs_hessian]

    def moment_names(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> list[str]:
        """Names of the tensors whose scheme needs the second moments of output gradients."""
        choices = self.chooser.choose(shapes, roles, set(shapes) - set(roles))
        return [c.name for c in choices if c.scheme is not None and c.scheme.needs_moments]

    def training(self, model: GPT, calibrate: Calibrate) -> WeightRounding | None:
        """The rounding of `model` while it is trained, None without. `calibrate`: see `pgolf.quant.qat`.

        ValueError when there is nothing to round, or the weights will be quantised in a basis that training does not
        know."""
        if self.qat is None:
            return None
        if self.allocation is not None or (self.qat.exact and self.pruning is not None):
            what = "quant/allocation" if self.allocation is not None else "quant/pruning"
            raise ValueError(f"quant.qat rounds as the schemes say and knows nothing of {what}: choose one of the two")
        roles = parameter_roles(model)
        sites: dict[str, Site] = {} if self.rotation is None else self.rotation.sites(roles)
        if self.rotation is not None and not sites:
            raise ValueError(
                "quant.qat rounds weights in the basis they are trained in, and quant.rotation=internal_only leaves "
                "that afterwards: choose quant/rotation=online or none"
            )
        turns = None if self.rotation is None else Turns(self.rotation.description["seed"])
        return WeightRounding(
            self.qat, model, self._choose(model.state_dict(), roles), self.target_bytes, calibrate, sites, turns
        )

    def compress(
        self,
        state: Mapping[str, Tensor],
        roles: Mapping[str, str],
        calibrations: Mapping[str, Calibration],
        metadata: dict[str, Any],
        path: Path,
        console: Console | None = None,
    ) -> dict[str, Any]:
        """Quantise `state`, write the artifact to `path` atomically and report.

        `calibrations` are those of `hessian_names`; `metadata` must be JSON and comes back from
        `container.load`.

        Returns a dictionary with `weight_bytes` (the size of the file), `header_bytes`,
        `limit_bytes`, `coder`, `classes` and `streams` (raw and coded bytes; classes and header add
        up to the file) and `tensors` (scheme used and relative error ||W' - W|| / ||W|| of each).
        """
        console = console or Silent()
        choices = self._choose(state, roles)
        if self.allocation is not None:
            try:
                choices = allocated(self.allocation, choices, calibrations)
            except ValueError as error:
                raise UserError(str(error)) from error
        if self.pruning is not None:
            state = self.pruning.weights(state)
        sites: dict[str, Site] = {}
        if self.rotation is not None:
            sites, metadata = self.rotation.sites(roles), {**metadata, "rotation": self.rotation.description}
            state, calibrations = self.rotation.rotated(state, roles, calibrations)
        attempt = Attempt(self, state, calibrations, metadata, sites, console)
        if self.target_bytes is None:
            attempt.make(choices)
        else:
            attempt.fill(choices, self.target_bytes)
        if self.pruning is not None:
            attempt.prune(self.pruning)
        rows = [tensor_row(tensor, state[tensor.name]) for tensor in attempt.stored]
        written = packer.write_built(path, attempt.header, attempt.coded)
        return {
            "weight_bytes": written["total_bytes"],
            "header_bytes": written["header_bytes"],
            "limit_bytes": self.limit_bytes,
            "coder": self.coder,
            "parameters": sum(row["elements"] for row in rows),
            "classes": class_rows(rows, written["streams"]),
            "streams": written["streams"],
            "tensors": rows,
        }

    def protect(
        self, choices: list[Choice], state: Mapping[str, Tensor], calibrations: Mapping[str, Calibration]
    ) -> list[Choice]:
        """The choices with AWQ-lite where it protects something."""
        if self.protection is None:
            return choices
        eligible = {
            choice.name: choice.scheme
            for choice in choices
            if isinstance(choice.scheme, Gptq) and choice.scheme.bits < PROTECTED_BITS and choice.name in calibrations
        }
        scores = {name: self.protection.scores(state[name].cpu(), calibrations[name]) for name in eligible}
        chosen = self.protection.choose(scores)
        protected = {name: self.protection.protect(eligible[name], starts) for name, starts in chosen.items()}
        return [replace(choice, scheme=protected.get(choice.name, choice.scheme)) for choice in choices]

    def quantise(
        self,
        choices: list[Choice],
        state: Mapping[str, Tensor],
        calibrations: Mapping[str, Calibration],
        console: Console,
    ) -> list[StoredTensor]:
        """Every tensor encoded, and corrected where a correction was chosen."""
        stored = []
        with console.task("quantise", len(choices)) as task:
            for done, choice in enumerate(choices, 1):
                tensor = state[choice.name]
                dtype = str(tensor.dtype).removeprefix("torch.")
                encoded = _encode(choice, tensor, calibrations.get(choice.name))
                stored.append(StoredTensor(choice.name, choice.role, dtype, encoded))
                task.update(done)
        if self.correction is None:
            return stored
        calibrated = {choice.name for choice in choices if choice.scheme is not None and choice.scheme.needs_hessian}
        errors = {one.name: error_norm(one, state[one.name]) for one in stored if one.name in calibrated}
        for name in self.correction.choose(errors):
            index = next(index for index, one in enumerate(stored) if one.name == name)
            try:
                corrected = self.correction.correct(stored[index].encoded, state[name])
            except ValueError as error:
                raise UserError(f"cannot correct tensor {name}: {error}") from error
            stored[index] = replace(stored[index], encoded=corrected)
        return stored

    def estimate(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> list[dict[str, Any]]:
        """Expected bytes of every tensor and of the header, see `pgolf.quant.estimate`; corrections are not counted.

        Tensors without a role are counted as float16.
        """
        shapes = {name: tuple(shape) for name, shape in shapes.items()}
        return estimate(self.chooser.choose(shapes, roles, set(shapes) - set(roles)), shapes, self.coder)


def _encode(choice: Choice, tensor: Tensor, calibration: Calibration | None) -> Encoded:
    if choice.scheme is None:
        return encode_exact(tensor)
    if choice.scheme.needs_hessian and calibration is None:
        raise UserError(
            f"tensor {choice.name} ({choice.scheme.label}) needs a Hessian and none was "
            "collected: add its module to calibration_sites() of the model, or use quant=int8."
        )
    try:
        return choice.scheme.quantise(tensor.detach().cpu(), None if calibration is None else calibration.cpu())
    except ValueError as error:
        raise UserError(f"cannot quantise tensor {choice.name}: {error}") from error

"""From a state dict to an artifact: each role has a scheme, and a coder packs the symbols."""

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.console import Console, Silent
from pgolf.errors import UserError
from pgolf.quant import container
from pgolf.quant.coders import CODERS
from pgolf.quant.container import StoredTensor
from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.schemes import Half, Scheme, encode_exact

HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 800, 9
"""Measured size of the packed header, for estimates: streams and metadata, names and shapes."""


class Rule:
    """Another scheme for the tensors of one role whose name matches a pattern.

    Args:
        role: role the rule is about ("matrix").
        pattern: shell-style pattern of the parameter name, for example "blocks.*.mlp.*".
        scheme: scheme used instead of the role's.
    """

    def __init__(self, *, role: str, pattern: str, scheme: Scheme):
        self.role, self.pattern, self.scheme = role, pattern, scheme

    def matches(self, name: str, role: str) -> bool:
        """Whether the rule is about this tensor."""
        return role == self.role and fnmatch.fnmatchcase(name, self.pattern)


@dataclass(frozen=True)
class _Choice:
    """The scheme that stores one tensor; None stores it exactly (integers and booleans)."""

    name: str
    role: str
    scheme: Scheme | None


class Compressor:
    """Quantises by role and writes the artifact.

    Args:
        matrix, embedding, head, scalar, gate: the scheme of each role; None: the model must have no
            such tensor.
        coder: entropy coder, a key of `pgolf.quant.coders.CODERS`.
        calibration_batches: training batches for the Hessians (read by the run, unused without
            GPTQ).
        limit_bytes: budget of artifact and code together, decimal bytes.
        min_quantised_elements: a row-wise scheme of matrix, embedding or head keeps smaller tensors
            in float16. The published scripts quantise above 65,536 elements, so their value is
            65,537.
        rules: name -> Rule, exceptions to the role's scheme; a tensor may match at most one.
        byte_shuffle: whether values of two and four bytes are split into byte planes before the
            coder.
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
        min_quantised_elements: int = 65_537,
        rules: dict[str, Rule] | None = None,
        byte_shuffle: bool = True,
    ):
        if coder not in CODERS:
            raise ValueError(f"coder={coder!r}: choose one of {', '.join(CODERS)}.")
        for key, value in (
            ("calibration_batches", calibration_batches),
            ("limit_bytes", limit_bytes),
            ("min_quantised_elements", min_quantised_elements),
        ):
            if value < 1:
                raise ValueError(f"{key}={value}: must be 1 or more.")
        self.schemes: dict[str, Scheme | None] = {
            "matrix": matrix,
            "embedding": embedding,
            "head": head,
            "scalar": scalar,
            "gate": gate,
        }
        self.rules = dict(rules or {})
        for key, rule in self.rules.items():
            if rule.role not in self.schemes:
                raise ValueError(f"rules.{key}: role {rule.role!r} is none of {', '.join(self.schemes)}.")
        self.coder = coder
        self.calibration_batches = calibration_batches
        self.limit_bytes = limit_bytes
        self.min_quantised_elements = min_quantised_elements
        self.byte_shuffle = byte_shuffle

    def _asked_for(self, name: str, role: str) -> Scheme:
        """The configured scheme, before the rule for small tensors."""
        matching = [key for key, rule in self.rules.items() if rule.matches(name, role)]
        if len(matching) > 1:
            raise UserError(
                f"tensor {name} matches the rules {' and '.join(matching)} of quant.rules; "
                "narrow one pattern so that one rule matches."
            )
        scheme = self.rules[matching[0]].scheme if matching else self.schemes.get(role)
        if scheme is None:
            raise UserError(
                f"tensor {name} has role {role!r}, which has no scheme: set quant.{role} "
                f"(roles: {', '.join(self.schemes)})."
            )
        return scheme

    def _choose(
        self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str], exact: set[str]
    ) -> list[_Choice]:
        """The scheme of every tensor, in order; every rule has to be of use."""
        choices = []
        for name, shape in shapes.items():
            if name in exact:
                choices.append(_Choice(name, roles.get(name, "buffer"), None))
                continue
            if name not in roles:
                raise UserError(f"tensor {name} has no role, so no quantisation scheme is known.")
            role = roles[name]
            scheme = self._asked_for(name, role)
            small = (
                scheme.row_wise
                and role in ("matrix", "embedding", "head")
                and math.prod(shape) < self.min_quantised_elements
            )
            choices.append(_Choice(name, role, Half() if small or not scheme.accepts(shape) else scheme))
        for key, rule in self.rules.items():
            if not any(rule.matches(name, roles.get(name, "")) for name in shapes):
                raise UserError(
                    f"quant.rules.{key} matches no {rule.role} tensor (pattern {rule.pattern!r}): "
                    "mend the pattern or remove the rule."
                )
        return choices

    def hessian_names(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> list[str]:
        """Names of the tensors whose scheme needs a Hessian; empty: no calibration is needed."""
        choices = self._choose(shapes, roles, set(shapes) - set(roles))
        return [c.name for c in choices if c.scheme is not None and c.scheme.needs_hessian]

    def _encode(self, choice: _Choice, tensor: Tensor, hessians: Mapping[str, Tensor]) -> Encoded:
        if choice.scheme is None:
            return encode_exact(tensor)
        hessian = hessians.get(choice.name)
        if choice.scheme.needs_hessian and hessian is None:
            raise UserError(
                f"tensor {choice.name} ({choice.scheme.label}) needs a Hessian and none was "
                "collected: add its module to calibration_sites() of the model, or use quant=int8."
            )
        try:
            return choice.scheme.quantise(tensor.detach().cpu(), None if hessian is None else hessian.cpu())
        except ValueError as error:
            raise UserError(f"cannot quantise tensor {choice.name}: {error}") from error

    def compress(
        self,
        state: Mapping[str, Tensor],
        roles: Mapping[str, str],
        hessians: Mapping[str, Tensor],
        metadata: dict[str, Any],
        path: Path,
        console: Console | None = None,
    ) -> dict[str, Any]:
        """Quantise `state`, write the artifact to `path` atomically and report.

        `hessians` are those of `hessian_names`; `metadata` must be JSON and comes back from
        `container.load`.

        Returns a dictionary with `weight_bytes` (the size of the file), `header_bytes`,
        `limit_bytes`, `coder`, `classes` and `streams` (raw and coded bytes; classes and header add
        up to the file) and `tensors` (scheme used and relative error ||W' - W|| / ||W|| of each).
        """
        console = console or Silent()
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        exact = {name for name, tensor in state.items() if not tensor.is_floating_point()}
        choices = self._choose(shapes, roles, exact)
        stored, rows = [], []
        with console.task("quantise", len(choices)) as task:
            for done, choice in enumerate(choices, 1):
                tensor = state[choice.name]
                encoded = self._encode(choice, tensor, hessians)
                dtype = str(tensor.dtype).removeprefix("torch.")
                stored.append(StoredTensor(choice.name, choice.role, dtype, encoded))
                rows.append(_tensor_row(stored[-1], tensor))
                task.update(done)
        console.say(f"packing {len(stored)} tensors with {self.coder}")
        written = container.write(path, stored, metadata, coder=self.coder, byte_shuffle=self.byte_shuffle)
        return {
            "weight_bytes": written["total_bytes"],
            "header_bytes": written["header_bytes"],
            "limit_bytes": self.limit_bytes,
            "coder": self.coder,
            "parameters": sum(row["elements"] for row in rows),
            "classes": _class_rows(rows, written["streams"]),
            "streams": written["streams"],
            "tensors": rows,
        }

    def estimate(self, shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, str]) -> list[dict[str, Any]]:
        """Expected bytes of every tensor and of the header: an estimate, no weights are looked at.

        Symbols are taken as clipped Gaussian noise, coded at the coder's measured overhead; row
        scales are counted in full. Rows: {tensor, role, scheme, bits (per element, with scales),
        elements, estimated_bytes, estimate: True}. Tensors without a role are counted as float16.
        """
        overhead = CODERS[self.coder].overhead
        rows = []
        for choice in self._choose(shapes, roles, set(shapes) - set(roles)):
            scheme = choice.scheme or Half()
            shape = tuple(shapes[choice.name])
            cost, elements = scheme.cost(shape), math.prod(shape)
            bits = float(cost.stored_bits)
            if overhead is not None:
                inefficiency = overhead if scheme.row_wise else 1.0
                bits = min(bits, cost.entropy_bits * inefficiency)
            size = math.ceil(elements * bits / 8) + cost.side_bytes
            rows.append(_estimate_row(choice.name, choice.role, scheme.label, elements, size))
        header = HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(shapes)
        rows.append(_estimate_row("(header)", "container", "zlib", 0, header))
        return rows


def by_class(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum the rows of `Compressor.estimate` by role and scheme; `tensors` counts them."""
    classes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        classes.setdefault((row["role"], row["scheme"]), []).append(row)
    result = []
    for (role, scheme), members in classes.items():
        elements = sum(row["elements"] for row in members)
        size = sum(row["estimated_bytes"] for row in members)
        row = _estimate_row(f"{len(members)} tensors", role, scheme, elements, size)
        result.append({**row, "tensors": len(members)})
    return result


def _estimate_row(tensor: str, role: str, scheme: str, elements: int, size: int) -> dict[str, Any]:
    return {
        "tensor": tensor,
        "role": role,
        "scheme": scheme,
        "bits": 8 * size / elements if elements else 0.0,
        "elements": elements,
        "estimated_bytes": size,
        "estimate": True,
    }


def _tensor_row(stored: StoredTensor, tensor: Tensor) -> dict[str, Any]:
    """What became of one tensor; the error is relative to its norm."""
    original = tensor.detach().cpu().to(torch.float32)
    error = (decode(stored.encoded).to(torch.float32) - original).norm().item()
    norm = original.norm().item()
    return {
        "tensor": stored.name,
        "role": stored.role,
        "scheme": stored.encoded.scheme,
        "elements": tensor.numel(),
        "relative_error": error / norm if norm > 0 else error,
    }


def _class_rows(tensors: list[dict[str, Any]], streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bytes of every role: streams never mix roles, so the sums are exact."""
    rows = []
    for role in dict.fromkeys(row["role"] for row in tensors):
        members = [row for row in tensors if row["role"] == role]
        own = [stream for stream in streams if stream["name"].split("/")[0] == role]
        elements = sum(row["elements"] for row in members)
        coded = sum(stream["coded"] for stream in own)
        rows.append(
            {
                "role": role,
                "schemes": sorted({row["scheme"] for row in members}),
                "tensors": len(members),
                "elements": elements,
                "raw_bytes": sum(stream["raw"] for stream in own),
                "coded_bytes": coded,
                "bits_per_element": 8 * coded / elements if elements else 0.0,
            }
        )
    return rows

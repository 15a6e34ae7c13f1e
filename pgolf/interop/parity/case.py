"""One reference case, and what comes of comparing it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAID = 3
"""So many of the quantities that differ are named."""

Array = npt.NDArray[Any]


class Unsupported(Exception):
    """This case asks for something that is not here; the message says what."""


@dataclass(frozen=True)
class Case:
    """One file of a reference folder.

    Attributes:
        name: the file's name without its ending.
        kind: prefix of the name that chose the runner. Runners read the rest from `meta`, never from the name.
        path: the file.
        arrays: every array of an .npz by name; empty for a .json.
        meta: the JSON that an .npz holds under `meta_json`, or all of a .json.
        tokenizer: the published tokenizer model, where one was found.
    """

    name: str
    kind: str
    path: Path
    arrays: Mapping[str, Array]
    meta: Any
    tokenizer: Path | None = None

    @classmethod
    def load(cls, path: Path, kind: str, tokenizer: Path | None = None) -> "Case":
        """Read a file. ValueError when it is not of the reference format."""
        if path.suffix == ".json":
            return cls(path.stem, kind, path, {}, json.loads(path.read_text(encoding="utf-8")), tokenizer)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if "meta_json" not in arrays:
            raise ValueError(f"{path.name} holds no meta_json, so it is no reference case")
        return cls(path.stem, kind, path, arrays, json.loads(str(arrays.pop("meta_json"))), tokenizer)

    def below(self, prefix: str) -> dict[str, Array]:
        """The arrays whose names begin with `prefix`, without it."""
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def tokenizer_file(self) -> Path:
        """The published tokenizer model. Unsupported when there is none."""
        if self.tokenizer is None:
            raise Unsupported("needs the published tokenizer model: lay it beside the folder or name it by --tokenizer")
        return self.tokenizer


@dataclass(frozen=True)
class Outcome:
    """The largest error of a case against its tolerance (0: exact), and what is worth saying about it."""

    max_error: float
    tolerance: float
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every number was near enough."""
        return self.max_error <= self.tolerance


@dataclass
class Comparison:
    """Collects the comparisons of one case; its outcome is that of the quantity furthest beyond its tolerance."""

    remarks: list[str] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)
    _worst: tuple[float, float] = (0.0, math.inf)
    _compared: int = 0

    def exact(self, what: str, got: Any, expected: Any) -> None:
        """Integers, and anything else that must be equal: the error is the largest difference, or infinite where there
        is no difference to take (another shape, text, None)."""
        self._add(what, _difference(got, expected), 0.0)

    def close(self, what: str, got: Any, expected: Any, tolerance: float) -> None:
        """Largest absolute difference."""
        self._add(what, _difference(got, expected), tolerance)

    def near(self, what: str, got: Any, expected: Any, tolerance: float) -> None:
        """Norm of the difference over the norm of what is expected."""
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        error = math.inf
        if got.shape == expected.shape:
            norm = float(np.linalg.norm(expected))
            error = float(np.linalg.norm(got - expected)) / (norm or 1.0)
        self._add(what, error, tolerance)

    def at_most(self, what: str, count: int, allowed: int) -> None:
        """A number of differences that may not exceed `allowed`."""
        self._add(what, float(count), float(allowed))

    def outcome(self) -> Outcome:
        """The result. ValueError when nothing was compared: such a case shows nothing."""
        if not self._compared:
            raise ValueError("the case holds nothing that was compared")
        told = self._wrong[:SAID]
        if len(self._wrong) > SAID:
            told.append(f"and {len(self._wrong) - SAID} more of {self._compared}")
        return Outcome(*self._worst, (*told, *self.remarks))

    def _add(self, what: str, error: float, tolerance: float) -> None:
        self._compared += 1
        error = math.inf if math.isnan(error) else error
        if error > tolerance:
            self._wrong.append(f"{what} differs by {error:g}")
        if _badness(error, tolerance) >= _badness(*self._worst):
            self._worst = (error, tolerance)


def _badness(error: float, tolerance: float) -> float:
    """How much of the tolerance is used; without a tolerance, any error is beyond all others."""
    if error == 0.0:
        return 0.0
    return error / tolerance if tolerance else math.inf


def _difference(got: Any, expected: Any) -> float:
    """Largest absolute difference; 0 for what is equal, infinite for what cannot be subtracted."""
    left, right = np.asarray(got), np.asarray(expected)
    if left.shape != right.shape:
        return math.inf
    if left.size == 0 or np.array_equal(left, right):
        return 0.0
    if left.dtype.kind not in "biuf" or right.dtype.kind not in "biuf":
        return math.inf
    return float(np.abs(left.astype(np.float64) - right.astype(np.float64)).max())

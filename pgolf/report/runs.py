"""Reading run directories into `Run` objects; what cannot be read is listed with its reason."""

import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.digest import group_digest
from pgolf.errors import UserError
from pgolf.files import read_json

MARKERS = ("status.json", "run.json", "summary.json", "config.json")
SCORE_ARRAYS = ("document", "tokens", "bytes", "nats_final")


@dataclass(frozen=True)
class Documents:
    """Per-document scores of one run, sorted by document; arrays of one length.

    `nats` maps a stage (`pre_quant`, `post_quant`, `final`) to summed nats, float64; a stage that
    the run did not score is not there. order, phase: when each was first scored, and the phase in
    which it was last (int64); None for runs that did not record them.
    """

    document: np.ndarray
    tokens: np.ndarray
    num_bytes: np.ndarray
    nats: dict[str, np.ndarray]
    order: np.ndarray | None = None
    phase: np.ndarray | None = None

    def bpb(self, stage: str) -> np.ndarray:
        """Bits per byte of every document at a stage; NaN for a document without bytes."""
        safe = np.where(self.num_bytes > 0, self.num_bytes, np.nan)
        return self.nats[stage] / safe / math.log(2)


@dataclass(frozen=True)
class Run:
    """One finished run. `group` is the digest of its configuration without the seed."""

    directory: Path
    summary: dict[str, Any]
    identity: dict[str, Any]
    config: dict[str, Any]
    group: str

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.summary["seed"])

    @property
    def name(self) -> str:
        """The name a person gave, else the experiment, else the folder's name without the seed."""
        for one in (self.identity.get("name"), self.summary.get("experiment")):
            if one and one != "none":
                return str(one)
        return self.directory.name.removesuffix(f"-seed{self.seed}")

    @property
    def val_bpb(self) -> float:
        """Final bits per byte."""
        return float(self.summary["val_bpb"])

    @property
    def val_loss(self) -> float:
        """Final loss in nats per scored token."""
        return float(self.summary["val_loss"])

    @property
    def tokens(self) -> int:
        """Scored tokens of the final stage."""
        return int(self.summary["stages"]["final"]["tokens"])

    @property
    def num_bytes(self) -> int:
        """Bytes that the scored tokens stand for."""
        return int(self.summary["stages"]["final"]["bytes"])

    @property
    def data_digest(self) -> str:
        """Hash of the data manifest."""
        return str(self.identity.get("data_digest", "unknown"))

    @property
    def code_hash(self) -> str:
        """Hash of the code that ran."""
        return str(self.identity.get("code_hash", "unknown"))

    def events(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The events of metrics.jsonl, and a sentence for each line that is not one."""
        return read_events(self.directory / "metrics.jsonl")

    def documents(self) -> Documents:
        """Per-document scores; UserError when scores.npz is missing or damaged."""
        return read_documents(self.directory / "scores.npz")


@dataclass(frozen=True)
class Problem:
    """A run directory that gives no result, and why."""

    directory: Path
    reason: str


@dataclass(frozen=True)
class Found:
    """What lies under some paths: finished runs, and the rest with reasons."""

    runs: list[Run]
    problems: list[Problem]

    def groups(self) -> dict[str, list[Run]]:
        """Runs by group digest, in the order found; each group sorted by seed."""
        grouped: dict[str, list[Run]] = {}
        for run in self.runs:
            grouped.setdefault(run.group, []).append(run)
        return {group: sorted(runs, key=lambda run: (run.seed, str(run.directory))) for group, runs in grouped.items()}


def find_runs(paths: Iterable[Path]) -> Found:
    """Read every run directory at or below `paths`; a directory reached twice counts once.

    Raises UserError for a path that does not exist or has no run directory at or below it.
    """
    directories: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is not a directory: give a run directory or a folder of them.")
        below = dict.fromkeys(found.resolve() for found in _run_directories(path))
        if not below:
            raise UserError(
                f"there is no run directory in {path}: a run directory has a status.json; "
                "give the folder that pgolf printed when the run began."
            )
        directories.update(below)
    runs: list[Run] = []
    problems: list[Problem] = []
    for directory in directories:
        try:
            runs.append(read_run(directory))
        except UserError as error:
            problems.append(Problem(directory, str(error)))
    return Found(runs, problems)


def _run_directories(path: Path) -> Iterator[Path]:
    if any((path / marker).is_file() for marker in MARKERS):
        yield path
        return
    found_below = False
    for entry in sorted(os.scandir(path), key=lambda one: one.name):
        if entry.is_dir(follow_symlinks=True) and not entry.name.startswith("."):
            for directory in _run_directories(Path(entry.path)):
                found_below = True
                yield directory
    if not found_below and (path / ".hydra").is_dir():
        yield path


def read_run(directory: Path) -> Run:
    """Read one run directory; UserError with the reason when it is unfinished or damaged."""
    _require_done(directory)
    summary = _read_mapping(directory / "summary.json")
    identity = _read_mapping(directory / "run.json")
    config = _read_mapping(directory / "config.json")
    _require_numbers(directory, summary)
    return Run(directory, summary, identity, config, group_digest(config))


def _require_done(directory: Path) -> None:
    path = directory / "status.json"
    if not path.exists():
        raise UserError("unfinished: the job stopped before it wrote status.json.")
    status = _read_mapping(path)
    state, stage = status.get("state"), status.get("stage")
    if state == "failed":
        raise UserError(f"failed in stage {stage}: {status.get('error') or 'no reason recorded'}")
    if state != "done":
        raise UserError(f"unfinished: status.json says {state} in stage {stage}.")


def _read_mapping(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it should hold a JSON object.")
    return value


def _require_numbers(directory: Path, summary: dict[str, Any]) -> None:
    final = _lookup(summary, "stages.final")
    missing = _lookup(summary, "stages.final.coverage.left_out")
    if summary.get("val_bpb") is None and missing:
        policy = _lookup(summary, "stages.final.coverage.policy")
        raise UserError(f"no score of the validation text: {missing:,} positions are left out ({policy}).")
    needed = {
        "val_bpb": summary.get("val_bpb"),
        "val_loss": summary.get("val_loss"),
        "seed": summary.get("seed"),
        "stages.final.tokens": final.get("tokens") if isinstance(final, dict) else None,
        "stages.final.bytes": final.get("bytes") if isinstance(final, dict) else None,
    }
    for key, value in needed.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None or not number or not math.isfinite(value):
            raise UserError(f"{directory / 'summary.json'}: {key} is {value!r}, not a number.")
        if key.startswith("stages.") and value <= 0:
            raise UserError(f"{directory / 'summary.json'}: {key} is {value}, not positive.")


def _lookup(value: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def figure(summary: dict[str, Any], dotted: str) -> float | None:
    """A number of the summary by dotted key, None when it is not recorded or not finite."""
    value = _lookup(summary, dotted)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def read_events(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Events of a metrics.jsonl, and a sentence for each damaged line (a killed run tears one)."""
    if not path.is_file():
        return [], [f"{path} is missing: there is nothing to plot over steps."]
    events: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict) and "event" in event:
            events.append(event)
        else:
            problems.append(f"{path} line {number} is not an event and was left out.")
    return events, problems


def read_documents(path: Path) -> Documents:
    """Per-document scores sorted by document; UserError when the file is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: the run has no per-document scores.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): score the run again.") from error
    missing = [name for name in SCORE_ARRAYS if name not in arrays]
    if missing:
        raise UserError(f"{path} has no array {missing[0]}; it has {', '.join(sorted(arrays))}.")
    lengths = {name: arrays[name].shape for name in arrays}
    if len(set(lengths.values())) != 1 or arrays["document"].ndim != 1:
        raise UserError(f"{path} is damaged: its arrays differ in length ({lengths}).")
    order = np.argsort(arrays["document"], kind="stable")
    stages = {
        stage: arrays[f"nats_{stage}"][order].astype(np.float64)
        for stage in ("pre_quant", "post_quant", "final")
        if f"nats_{stage}" in arrays and np.isfinite(arrays[f"nats_{stage}"]).all()
    }
    if "final" not in stages:
        raise UserError(f"{path}: nats_final has values that are not finite; score the run again.")
    return Documents(
        arrays["document"][order],
        arrays["tokens"][order].astype(np.int64),
        arrays["bytes"][order].astype(np.int64),
        stages,
        *(arrays[name][order].astype(np.int64) if name in arrays else None for name in ("order", "phase")),
    )

"""What a run writes down about itself: events, stages, scores. The run directory is the run."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pgolf.errors import UserError
from pgolf.files import atomic_open, read_json, write_json


class Tracker(Protocol):
    """A mirror of the events elsewhere (wandb)."""

    def log(self, event: dict[str, Any]) -> None:
        """Take in one event."""


class Untracked:
    """No mirror."""

    def log(self, event: dict[str, Any]) -> None:
        """Drop the event."""


class RunRecord:
    """Files of one run directory. Only the leader of a group writes; the others keep silent copies.

    run.json holds the identity and, per stage, start, end, seconds and result: what is recorded there is done and is
    not done again.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], leads: bool, tracker: Tracker) -> None:
        self.directory, self._leads, self._tracker = directory, leads, tracker
        path = directory / "run.json"
        known = read_json(path) if path.exists() else {}
        if leads:
            _end_torn_line(directory / "metrics.jsonl")
        self.data: dict[str, Any] = {**known, **identity, "stages": known.get("stages", {})}

    def path(self, name: str) -> Path:
        """A file of the run directory."""
        return self.directory / name

    def log(self, event: dict[str, Any]) -> None:
        """Append one event to metrics.jsonl and hand it to the tracker."""
        if not self._leads:
            return
        line = json.dumps({**event, "time": round(time.time(), 3)})
        try:
            with open(self.path("metrics.jsonl"), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.path('metrics.jsonl')}: {error.strerror}. "
                "Free some space; the same command continues."
            ) from error
        self._tracker.log(event)

    def done(self, stage: str) -> bool:
        """Whether an earlier process finished this stage."""
        return stage in self.data["stages"]

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage found."""
        return self.data["stages"][stage]["result"]

    def seconds(self) -> dict[str, float]:
        """Seconds of every finished stage."""
        return {stage: entry["seconds"] for stage, entry in self.data["stages"].items()}

    def stage(
        self, name: str, work: Callable[[], dict[str, Any]], clock: Callable[[], float] = time.monotonic
    ) -> dict[str, Any]:
        """Do `work` unless it is done; its result (JSON) is kept in run.json and returned."""
        if self.done(name):
            return self.result(name)
        self._status("running", name)
        self.log({"event": "stage", "stage": name, "state": "start"})
        start, begun = time.time(), clock()
        result = work()
        seconds = result.get("seconds", clock() - begun)
        self.data["stages"][name] = {"start": start, "end": time.time(), "seconds": seconds, "result": result}
        self.save()
        self.log({"event": "stage", "stage": name, "state": "done", "seconds": seconds})
        return result

    def save(self) -> None:
        """Write run.json."""
        if self._leads:
            write_json(self.path("run.json"), self.data)

    def _status(self, state: str, stage: str) -> None:
        if self._leads:
            write_json(
                self.path("status.json"),
                {"state": state, "stage": stage, "digest": self.data.get("digest"), "error": None},
            )

    def add_scores(self, columns: dict[str, np.ndarray]) -> None:
        """Add columns (one entry per document) to scores.npz."""
        if not self._leads:
            return
        path = self.path("scores.npz")
        known = dict(np.load(path)) if path.exists() else {}
        with atomic_open(path) as file:
            np.savez(file, **{**known, **columns})


def _end_torn_line(path: Path) -> None:
    """End the line that a killed process left half written, so that it spoils no later event."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")

"""The register of a folder of runs: a line for every start and every end, so that no run is dropped in silence.

A run directory can be deleted, moved or left out of a comparison; its lines in the register stay. `pgolf compare` and
`pgolf report` read them and name the seeds that were started and are not shown.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgolf.errors import UserError

FILE = "started.jsonl"


@dataclass(frozen=True)
class Started:
    """One run directory as the register knows it, with what became of it last.

    directory: name of the run directory in the register's folder; group: digest without the seed; state: `running`
    (or cut off without a word), `done` or `failed`; starts: how often it was started or continued.
    """

    directory: str
    group: str
    digest: str
    seed: int
    name: str
    state: str
    error: str | None
    starts: int
    overrides: list[str] = field(default_factory=list)


def note(directory: Path, state: str, facts: dict[str, Any], error: str | None = None) -> None:
    """Append what just happened to the run in `directory` to the register of its folder, and force it to disk.

    facts: group, digest, seed, name, overrides. UserError when the folder cannot be written.
    """
    line = {"time": time.time(), "directory": directory.name, "state": state, "error": error, **facts}
    path = directory.parent / FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(line) + "\n").encode())  # one write: jobs at the same time do not mix
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as failure:
        raise UserError(f"cannot write {path}: {failure.strerror or failure}. Free some space.") from failure


def read(folder: Path) -> list[Started]:
    """Every run that was ever started in `folder`, in the order of first starts; empty without a register.

    A torn or damaged line (a full disk, a kill) is passed over: the lines beside it stand alone.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    found: dict[tuple[str, str], Started] = {}
    for text in path.read_text("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
            key = (str(line["directory"]), str(line["digest"]))
            before = found.get(key)
            starts = (before.starts if before else 0) + (line["state"] == "running")
            found[key] = Started(
                *key[:1], str(line["group"]), key[1], int(line["seed"]), str(line["name"]), str(line["state"]),
                line.get("error"), starts, list(line.get("overrides", [])),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError):
            continue
    return list(found.values())

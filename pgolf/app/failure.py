"""How a run ended badly: one file per failing process, so that the first cause can be told."""

import errno
import re
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import read_json, write_json

FOLDER = "ranks"
HANGS = (
    "the processes waited for each other in vain: one of them hangs, or is much slower than the others. "
    "The same command continues; launch.timeout_seconds says how long to wait"
)
ALONE = "another process of this run ended, so this one could not go on"
TIMED_OUT = re.compile(r"timed out waiting|Timed out|timeout.*collective|wait timeout", re.IGNORECASE)
LEFT = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Failure:
    """One failing process. `crash`: not the user's doing, its traceback is in train.log."""

    rank: int
    time: float
    sentence: str
    exit_status: int
    crash: bool


def record(directory: Path, rank: int, error: Exception) -> Failure:
    """Note the failure of a process in the run directory, with its traceback in train.log."""
    failure = describe(directory, rank, error)
    write_json(directory / FOLDER / f"error-{rank}.json", asdict(failure))
    return failure


def describe(directory: Path, rank: int, error: Exception) -> Failure:
    """One sentence for people; the traceback of a crash goes to train.log."""
    if isinstance(error, UserError):
        return Failure(rank, time.time(), str(error), error.exit_status, False)
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        where = f" {error.filename}" if error.filename else ""
        sentence = f"cannot write{where}: {error.strerror}. Free some space; the same command continues."
        return Failure(rank, time.time(), sentence, 1, False)
    if (waited := _of_waiting(error)) is not None:
        return Failure(rank, time.time(), waited, 1, False)
    try:
        with open(directory / "train.log", "a", encoding="utf-8") as log:
            log.write(f"rank {rank} failed:\n{''.join(traceback.format_exception(error))}")
        logged = True
    except OSError:
        logged = False  # the sentence then names no log
    return Failure(rank, time.time(), f"{type(error).__name__}: {error}", 1, logged)


def _of_waiting(error: Exception) -> str | None:
    """The sentence for a collective that ended without the other ranks; None for other errors."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not re.search(r"gloo|nccl|process group|collective", text, re.IGNORECASE):
        return None
    if TIMED_OUT.search(text):
        return HANGS
    return ALONE if LEFT.search(text) else None


def forget(directory: Path) -> None:
    """Remove the notes of an earlier attempt."""
    for path in (directory / FOLDER).glob("error-*.json"):
        path.unlink()


def first(directory: Path) -> Failure | None:
    """The earliest failure; the later ones are mostly its consequences."""
    return min(_notes(directory), key=lambda note: note.time, default=None)


def ranks(directory: Path) -> set[int]:
    """The ranks that noted a failure of their own."""
    return {note.rank for note in _notes(directory)}


def _notes(directory: Path) -> list[Failure]:
    return [Failure(**read_json(path)) for path in (directory / FOLDER).glob("error-*.json")]


def sentence(failure: Failure, directory: Path, world_size: int) -> str:
    """What to show: the rank when there are several and not all of them say the same, the log when there is a
    traceback."""
    shared = sum(note.sentence == failure.sentence for note in _notes(directory)) > 1
    who = f"rank {failure.rank}: " if world_size > 1 and not shared else ""
    where = f" (traceback in {directory / 'train.log'})" if failure.crash else ""
    return f"{who}{failure.sentence}{where}"

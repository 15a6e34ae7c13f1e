"""How a run ended badly: one file per failing process, so that the first cause can be told."""

import errno
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import read_json, write_json

FOLDER = "ranks"
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
    try:
        with open(directory / "train.log", "a", encoding="utf-8") as log:
            log.write(f"rank {rank} failed:\n{''.join(traceback.format_exception(error))}")
        logged = True
    except OSError:
        logged = False  # the sentence then names no log
    return Failure(rank, time.time(), f"{type(error).__name__}: {error}", 1, logged)


def forget(directory: Path) -> None:
    """Remove the notes of an earlier attempt."""
    for path in (directory / FOLDER).glob("error-*.json"):
        path.unlink()


def first(directory: Path) -> Failure | None:
    """The earliest failure; the later ones are mostly its consequences."""
    notes = [Failure(**read_json(path)) for path in (directory / FOLDER).glob("error-*.json")]
    return min(notes, key=lambda note: note.time, default=None)


def sentence(failure: Failure, directory: Path, world_size: int) -> str:
    """What to show: the rank when there are several, the log when there is a traceback."""
    who = f"rank {failure.rank}: " if world_size > 1 else ""
    where = f" (traceback in {directory / 'train.log'})" if failure.crash else ""
    return f"{who}{failure.sentence}{where}"

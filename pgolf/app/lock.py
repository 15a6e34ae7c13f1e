"""One process at a time works in a run directory."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pgolf.errors import UserError

NAME = ".lock"
NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class NotOurs(UserError):
    """This directory belongs to another process or another run; nothing in it may be touched."""


class RunLock:
    """A kernel lock on `<directory>/.lock`; it ends with its last holder, however that dies.

    Pass `descriptor` to a child process that must keep the lock when this process is killed.
    Raises NotOurs when another process holds it or the directory cannot be written. On a file
    system without locks it says so.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self.directory, self.say = directory, say
        self.descriptor = -1

    def __enter__(self) -> "RunLock":
        """Take the lock or refuse."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.descriptor = os.open(self.directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise NotOurs(
                f"cannot write in {self.directory}: {error.strerror or error}. "
                "Choose another place with paths.runs (hydra.sweep.dir for a sweep)."
            ) from error
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self.descriptor, 200, 0).decode(errors="replace").strip()
            self.release()
            raise NotOurs(
                f"{self.directory} is in use by {holder or 'another process'}: wait for it, or stop it first."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                self.release()
                raise
            self.say(f"{self.directory} is on a file system without locks: start this run only once.")
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            os.ftruncate(self.descriptor, 0)
            holder = f"process {os.getpid()} on {socket.gethostname()}\n"
            os.pwrite(self.descriptor, holder.encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go."""
        self.release()

    def retake(self) -> None:
        """Lock the directory anew after it was renamed and its name is free again."""
        self.release()
        self.__enter__()

    def release(self) -> None:
        """Close the descriptor; the lock is free when no child holds it either."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

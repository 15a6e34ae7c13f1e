"""SHA-256 of source files, computed once for each state of a file."""

import hashlib
from pathlib import Path

from pgolf.console import Console, Silent
from pgolf.errors import UserError
from pgolf.files import read_json, write_json

BIG_BYTES = 64 * 2**20  # Smaller files are hashed every time: that takes a twentieth of a second.
CHUNK_BYTES = 4 * 2**20


class FileHashes:
    """The hashes of files.

    Args:
        path: a JSON file that keeps the hashes of big files between processes, each with the size, the time of the
            last change and the inode that it was computed for; None keeps them in memory alone.
        console: shows the progress of hashing a big file.
    """

    def __init__(self, path: Path | None = None, console: Console | None = None):
        self._path, self._console = path, console or Silent()
        self._known: dict[str, list[int | str]] = {}
        if path is not None and path.is_file():
            try:
                self._known = dict(read_json(path))
            except (UserError, TypeError, ValueError) as error:
                self._console.say(f"The kept file hashes are not used: {error}")

    def sha256(self, path: Path) -> str:
        """64 hexadecimal digits; UserError when the file cannot be read."""
        try:
            state = file_state(path)
            known = self._known.get(str(path.absolute()))
            if known is not None and known[:3] == state:
                return str(known[3])
            digest = self._hash(path, state[0])
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
        if state[0] >= BIG_BYTES:
            self._known[str(path.absolute())] = [*state, digest]
            self._keep()
        return digest

    def _hash(self, path: Path, size: int) -> str:
        if size < BIG_BYTES:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        digest, done = hashlib.sha256(), 0
        with open(path, "rb") as file, self._console.task(f"Hashing {path.name} (MB)", size // 10**6) as task:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                task.update(done // 10**6)
        return digest.hexdigest()

    def _keep(self) -> None:
        if self._path is None:
            return
        try:
            write_json(self._path, self._known)
        except UserError as error:
            self._path = None
            self._console.say(f"The file hashes are not kept for the next time: {error}")


def file_state(path: Path) -> list[int]:
    """Size, time of the last change in nanoseconds, inode: what differs when a file was written again."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]

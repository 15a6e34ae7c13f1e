"""Complete training states on disk: each file is either whole or refused, and the one before stands behind it.

Layout of a file: 8 bytes b"PGOLFCP2", 32 bytes SHA-256 of the rest, then torch.save's archive (read back with
weights_only=True). In a directory `state.pgolf` is the newest, `earlier-1.pgolf` the one before, and so on.
"""

import hashlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pgolf.console import Console
from pgolf.distributed import Group
from pgolf.errors import UserError
from pgolf.files import write_bytes

MAGIC = b"PGOLFCP2"
LARGE = 2**25  # bytes, which take a tenth of a second and more to serialise, hash and write
NEWEST, DAMAGED = "state.pgolf", "damaged.pgolf"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, lists, dicts) atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_bytes(path, MAGIC + hashlib.sha256(payload).digest() + payload)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises UserError when it is damaged."""
    data = path.read_bytes()
    magic, checksum, payload = data[:8], data[8:40], data[40:]
    if magic[:7] != MAGIC[:7] or hashlib.sha256(payload).digest() != checksum:
        raise UserError(
            f"checkpoint {path} is damaged (its checksum does not match): "
            "delete it to train this run again from step 0."
        )
    if magic != MAGIC:
        raise UserError(
            f"checkpoint {path} was written by another version of pgolf: "
            "continue with that one, or delete it to train this run again from step 0."
        )
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


class Checkpoints:
    """The last `keep` states of one run in `directory`; the leader of the group writes.

    background: a thread writes a copy while training goes on; an error in it is raised by the next `save` or by
    `close`. Without it `save` returns when the file is on disk. None: a thread writes states of LARGE bytes and more,
    which would hold training for longer than their copy does. Raises ValueError when keep < 1.
    """

    def __init__(self, directory: Path, *, keep: int, background: bool | None = None) -> None:
        if keep < 1:
            raise ValueError(f"checkpoints_kept={keep} must be at least 1")
        self.directory, self.keep, self.background = directory, keep, background
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def path(self) -> Path:
        """Where the newest state is."""
        return self.directory / NEWEST

    def newest(self, group: Group, console: Console) -> dict[str, Any] | None:
        """The newest state that is whole, on every rank; None when there is none at all.

        A damaged one is set aside and said aloud when an earlier one is whole; else UserError.
        """
        chosen = group.gather(self._choose(console) if group.leads else None)[0]
        return None if chosen is None else load(self.directory / chosen)

    def save(self, state: dict[str, Any]) -> None:
        """Make `state` the newest."""
        self._wait()
        if not (_bytes(state) >= LARGE if self.background is None else self.background):
            self._write(state)
            return
        self._writer = threading.Thread(target=self._try, args=(_copied(state),), name="checkpoint")
        self._writer.start()

    def close(self) -> None:
        """Wait for what is being written. Raises its error."""
        self._wait()

    def _choose(self, console: Console) -> str | None:
        present = [path for path in self._files() if path.exists()]
        damage: dict[Path, UserError] = {}
        for path in present:
            try:
                load(path)
            except UserError as error:
                damage[path] = error
                continue
            if damage:
                console.say(f"{'; '.join(map(str, damage))} is damaged: continuing from the state before it, {path}")
                self._set_aside(path, list(damage))
                return NEWEST
            return path.name
        if damage:
            raise next(iter(damage.values()))
        return None

    def _set_aside(self, whole: Path, damaged: list[Path]) -> None:
        """Keep the newest damaged file under another name, and make the whole one the newest."""
        os.replace(damaged[0], self.directory / DAMAGED)
        for path in damaged[1:]:
            path.unlink()
        os.replace(whole, self.path)

    def _files(self) -> Iterator[Path]:
        """Newest first; more than `keep`, so that a run that keeps fewer than before still finds them."""
        yield self.path
        earlier = self.directory.glob("earlier-*.pgolf")
        yield from sorted(earlier, key=lambda path: int(path.stem.removeprefix("earlier-")))

    def _earlier(self, number: int) -> Path:
        return self.directory / f"earlier-{number}.pgolf"

    def _write(self, state: dict[str, Any]) -> None:
        held = self._hold() if self.keep > 1 and self.path.exists() else None
        try:
            save(self.path, state)
            if held is not None:
                self._shift(held)
        finally:
            if held is not None:
                held.unlink(missing_ok=True)

    def _hold(self) -> Path | None:
        """A second name for the newest state, so that it outlives the one that takes its name."""
        held = self.directory / f".{NEWEST}.held.tmp"
        held.unlink(missing_ok=True)
        try:
            os.link(self.path, held)
        except OSError:  # a file system without hard links
            write_bytes(held, self.path.read_bytes())
        return held

    def _shift(self, held: Path) -> None:
        for number in range(self.keep - 1, 1, -1):
            if self._earlier(number - 1).exists():
                os.replace(self._earlier(number - 1), self._earlier(number))
        os.replace(held, self._earlier(1))
        for path in list(self._files())[self.keep :]:
            path.unlink()

    def _try(self, state: dict[str, Any]) -> None:
        try:
            self._write(state)
        except Exception as error:  # raised where training notices it
            self._error = error

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error


def _bytes(value: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(_bytes(child) for child in children)


def _copied(value: Any) -> Any:
    """The same state in main memory, apart from what training goes on to change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(child) for child in value]
    return value

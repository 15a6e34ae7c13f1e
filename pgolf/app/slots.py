"""GPUs that the jobs of one machine share: each takes free ones, and waits while there are too few."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgolf.errors import UserError

LOOK_AGAIN = 0.5  # seconds between looks at what has become free


@dataclass(frozen=True)
class Held:
    """GPUs that this job has for itself, as CUDA_VISIBLE_DEVICES names them. Pass `descriptors` to a child that uses
    them: a GPU is free when nobody holds its descriptor any more, however they died."""

    gpus: list[str]
    descriptors: list[int]


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, else the numbers of all GPUs."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [one.strip() for one in listed.split(",") if one.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def default_folder() -> Path:
    """Where this user's jobs on this machine meet."""
    return Path(tempfile.gettempdir()) / f"pgolf-gpus-{os.getuid()}"


@contextlib.contextmanager
def taken(
    gpus: Sequence[str],
    count: int,
    say: Callable[[str], None],
    folder: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Held]:
    """Hold `count` of `gpus` while the block runs; one file with a kernel lock in `folder` stands for each.

    A job that finds too few keeps none while it waits, so that two jobs never wait for each other. UserError when there
    are not that many GPUs at all, or the folder cannot be written.
    """
    if len(gpus) < count:
        raise UserError(
            f"launch.share_gpus=true with launch.nproc={count}, but this machine shows {len(gpus)} GPU(s): "
            "lower launch.nproc, or launch.share_gpus=false."
        )
    folder = folder or default_folder()
    told = False
    while (held := _try(gpus, count, folder)) is None:
        if not told:
            say(f"waiting for {count} of {len(gpus)} GPU(s): other jobs have them")
            told = True
        sleep(LOOK_AGAIN)
    try:
        yield held
    finally:
        _release(held.descriptors)


def _try(gpus: Sequence[str], count: int, folder: Path) -> Held | None:
    """The first `count` free GPUs, or None and none of them."""
    found = Held([], [])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for gpu in gpus:
            descriptor = os.open(folder / f"{_safe(gpu)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            found.gpus.append(gpu)
            found.descriptors.append(descriptor)
            if len(found.gpus) == count:
                return found
    except OSError as error:
        _release(found.descriptors)
        raise UserError(f"cannot keep the list of GPUs in use in {folder}: {error.strerror or error}.") from error
    _release(found.descriptors)
    return None


def _release(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _safe(gpu: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in gpu)

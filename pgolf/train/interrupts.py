"""Being asked to end: SIGINT and SIGTERM wait for the end of the step that is under way."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SAME = 2.0  # seconds within which a second signal is an echo of the first: torchrun passes on what a terminal sent


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to end and has written down where it stands."""


def terminate(number: int, frame: FrameType | None) -> None:
    """The handler of SIGTERM outside of training."""
    raise Terminated


@contextlib.contextmanager
def deferred(now: Callable[[], float] = time.monotonic) -> Iterator[Callable[[], bool]]:
    """While the block runs, a signal is noted and not raised; the value says whether one came.

    A second one, later than its echo, acts as it would without the block: who insists does not wait for a step.
    Handlers that someone else installed (a job scheduler) stay, and only the main thread can have any.
    """
    asked_at: float | None = None
    replaced: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = now()
        elif now() - asked_at > SAME:
            replaced[number](number, frame)

    if threading.current_thread() is threading.main_thread():
        number: int
        for number, ours in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, terminate)):
            if signal.getsignal(number) is ours:
                replaced[number] = signal.signal(number, note)
    try:
        yield lambda: asked_at is not None
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)

"""Ctrl-C, a scheduler's SIGTERM and a parent's death all end a run the same orderly way."""

import ctypes
import signal
import sys
import threading
from types import FrameType

PR_SET_PDEATHSIG = 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C."""


def interruptible() -> None:
    """Raise Terminated on SIGTERM, unless a job scheduler has put its own handler there."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _raise)


def die_with_parent() -> None:
    """On Linux: get SIGTERM when the parent process dies, so that kill -9 leaves no orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated

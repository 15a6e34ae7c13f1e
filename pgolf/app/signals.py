"""Ctrl-C, a scheduler's SIGTERM and a parent's death all end a run the same orderly way."""

import ctypes
import signal
import sys
import threading

from pgolf.train.interrupts import terminate

PR_SET_PDEATHSIG = 1


def interruptible() -> None:
    """Raise Terminated on SIGTERM, unless a job scheduler has put its own handler there. Training ends its step and
    writes it down first."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminate)


def die_with_parent() -> None:
    """On Linux: get SIGTERM when the parent process dies, so that kill -9 leaves no orphan."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

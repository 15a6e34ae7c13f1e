"""How this process uses the machine; must run before torch is imported."""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import NoReturn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


def prepare_process() -> None:
    """Let threads that wait fall asleep soon, and keep freed memory for the next tensor.

    By default threads spin while they wait, and a step becomes ten to thirty times slower as soon as other
    programs want the cores; asleep at once, two threads are no faster than one. A short spin has most of both
    (measured: LAB.md). What the user has set is kept. By default glibc gives every large block back to the
    system, and a training step on a CPU then spends a fifth of its time on page faults.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def cache_root() -> Path:
    """Where things lie that can be made again at any time, only slower."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgolf"


def keep_compiled(code_hash: str) -> Path:
    """Let torch.compile and triton keep what they make in a folder for this code, which later runs of the same code
    find warm; gives it. What the user has set (TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR) is kept. Nothing is compiled,
    and no folder made, unless a run does compile."""
    folder = cache_root() / "compiled" / code_hash[:16]
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def leave(status: int) -> NoReturn:
    """End one of several processes at once with `status`; everything must be written and closed before.

    The threads of torch.distributed's gloo back end abort about one in twelve interpreters on their way out, and a
    launcher then takes a finished run for a failed one.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

"""How this process uses the machine; must run before torch is imported."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h


def prepare_process() -> None:
    """Let idle threads sleep, and keep freed memory for the next tensor.

    Threads that spin while they wait make a step twenty times slower as soon as another program wants a core
    (measured: LAB.md); a user's own OMP_WAIT_POLICY is kept. By default glibc gives every large block back to
    the system, and a training step on a CPU then spends a fifth of its time on page faults.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)

"""Python reads this file at start when its folder is on PYTHONPATH.

PGOLF_HOLD=NAME:COUNT:MARKER stops the process just before a file called NAME gets its name for the COUNT-th time: it
writes MARKER and waits for a signal. So a test can kill or interrupt a run at a moment that does not depend on speed.
"""

import os
import select
import signal
import sys
import threading
import time
from pathlib import Path


def wait_for_a_signal(marker: Path) -> None:
    """Write the marker and wait; whether the signal's handler raises or only notes it, the waiting ends.

    Signals reach the main thread alone: another thread waits to be killed with its process.
    """
    if threading.current_thread() is not threading.main_thread():
        marker.write_text(str(os.getpid()))
        time.sleep(120.0)
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    marker.write_text(str(os.getpid()))
    while not select.select([reader], [], [], 0.02)[0]:
        pass
    signal.set_wakeup_fd(-1)


def install(name: str, count: int, marker: Path) -> None:
    """Watch the renames of this process."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event == "os.rename" and os.path.basename(arguments[1]) == name:
            seen += 1
            if seen == count:
                wait_for_a_signal(marker)

    sys.addaudithook(hook)


if os.environ.get("PGOLF_HOLD"):
    name, count, marker = os.environ["PGOLF_HOLD"].split(":", 2)
    install(name, int(count), Path(marker))

"""Several processes on this machine: torchrun as a child that cannot outlive its parent."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from pgolf.app import failure, signals
from pgolf.errors import UserError

RANK_ENDED = re.compile(r"rank\s*: (\d+) .*?\n\s*exitcode\s*: (-?\d+)")
KILLED = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}
PATIENCE = 40.0  # seconds: torchrun gives its workers 30 before it kills them


class WorkerFailed(UserError):
    """Some rank failed; the sentence is the first one's."""

    def __init__(self, sentence: str, exit_status: int):
        super().__init__(sentence)
        self.exit_status = exit_status


def torchrun(directory: Path, nproc: int, lock_descriptor: int) -> None:
    """Run `pgolf.app.worker` on `directory` in `nproc` processes and wait.

    Rank 0 writes to this terminal; the output of the others, and torchrun's own, goes to
    `<directory>/ranks`. Raises WorkerFailed with the first failing rank's sentence.
    """
    ranks = directory / failure.FOLDER
    ranks.mkdir(exist_ok=True)
    failure.forget(directory)
    with open(ranks / "torchrun.log", "ab") as log:
        start = log.tell()
        child = subprocess.Popen(
            _command(directory, nproc, ranks),
            stderr=log,
            env=_environment(nproc),
            pass_fds=(lock_descriptor,),
            start_new_session=True,
            preexec_fn=signals.die_with_parent,
        )
        status = _wait(child)
    if status != 0:
        raise _failed(directory, nproc, status, start)


def _command(directory: Path, nproc: int, ranks: Path) -> list[str]:
    quiet = ",".join(f"{rank}:3" for rank in range(1, nproc))
    return [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={nproc}",
        ),
        *("--log-dir", str(ranks), "--redirects", quiet, "-m", "pgolf.app.worker", str(directory)),
    ]


def _environment(nproc: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // nproc)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(PATIENCE)
        if child.poll() is None:
            child.kill()
        raise


def _failed(directory: Path, nproc: int, status: int, start: int) -> WorkerFailed:
    log = directory / failure.FOLDER / "torchrun.log"
    with open(log, "rb") as file:
        file.seek(start)
        report = file.read().decode(errors="replace")
    killed = [(rank, int(code)) for rank, code in RANK_ENDED.findall(report) if int(code) in KILLED]
    if killed:
        rank, code = killed[0]
        name = signal.Signals(-code).name
        return WorkerFailed(f"rank {rank} was ended by {name}, perhaps for lack of memory (more in {log})", 1)
    noted = failure.first(directory)
    if noted is not None:
        return WorkerFailed(failure.sentence(noted, directory, nproc), noted.exit_status)
    return WorkerFailed(f"torchrun ended with status {status} and no rank said why (more in {log})", 1)

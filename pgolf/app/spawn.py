"""Several processes on this machine: torchrun as a child that cannot outlive its parent."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pgolf.app import failure, signals
from pgolf.errors import UserError

RANK_ENDED = re.compile(r"rank\s*: (\d+) .*?\n\s*exitcode\s*: (-?\d+)")
KILLED = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS}
INTERRUPTED = 130  # exit status of a rank that was asked to end
HUNG = "Watchdog caught collective operation timeout"  # how nccl says that a rank waited in vain, before it aborts
PATIENCE = 40.0  # seconds: torchrun gives its workers 30 before it kills them


class WorkerFailed(UserError):
    """Some rank failed; the sentence is the first one's."""

    def __init__(self, sentence: str, exit_status: int):
        super().__init__(sentence)
        self.exit_status = exit_status


def torchrun(directory: Path, nproc: int, descriptors: Sequence[int], gpus: Sequence[str] = ()) -> None:
    """Run `pgolf.app.worker` on `directory` in `nproc` processes and wait.

    descriptors: of locks that the processes keep when this one is killed. gpus: the only ones that they see (none
    listed: all). Rank 0 writes to this terminal; the output of the others, and torchrun's own, goes to
    `<directory>/ranks`. Raises WorkerFailed with the first failing rank's sentence, and KeyboardInterrupt when the
    ranks were asked to end and did so in good order.
    """
    ranks = directory / failure.FOLDER
    ranks.mkdir(exist_ok=True)
    failure.forget(directory)
    with open(ranks / "torchrun.log", "ab") as log:
        start = log.tell()
        child = subprocess.Popen(
            _command(directory, nproc, ranks),
            stderr=log,
            env=_environment(nproc, gpus),
            pass_fds=tuple(descriptors),
            start_new_session=True,
            preexec_fn=signals.die_with_parent,
        )
        status = _wait(child)
    if status != 0 and _interrupted(directory, start):
        raise KeyboardInterrupt
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


def _environment(nproc: int, gpus: Sequence[str]) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // nproc)
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **seen}


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


def _report(directory: Path, start: int) -> str:
    """What torchrun wrote since byte `start` of its log."""
    with open(directory / failure.FOLDER / "torchrun.log", "rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _interrupted(directory: Path, start: int) -> bool:
    """Whether the ranks themselves were interrupted, as by a scheduler that signals every process."""
    codes = {int(code) for _, code in RANK_ENDED.findall(_report(directory, start))}
    return codes == {INTERRUPTED} and failure.first(directory) is None


def _failed(directory: Path, nproc: int, status: int, start: int) -> WorkerFailed:
    log, report = directory / failure.FOLDER / "torchrun.log", _report(directory, start)
    if HUNG in report:
        return WorkerFailed(f"{failure.HANGS} (more in {log})", 1)
    noted = failure.first(directory)
    said_why = failure.ranks(directory)  # a rank that noted its failure may abort when it leaves the others
    ended = [(rank, int(code)) for rank, code in RANK_ENDED.findall(report)]
    killed = [(rank, code) for rank, code in ended if code in KILLED and int(rank) not in said_why]
    if killed:
        rank, code = killed[0]
        name = signal.Signals(-code).name
        return WorkerFailed(f"rank {rank} was ended by {name}, perhaps for lack of memory (more in {log})", 1)
    if noted is not None:
        return WorkerFailed(failure.sentence(noted, directory, nproc), noted.exit_status)
    return WorkerFailed(f"torchrun ended with status {status} and no rank said why (more in {log})", 1)

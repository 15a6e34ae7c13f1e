"""The command line as real processes: exit statuses, files, several ranks, signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pgolf.files import read_json

from .conftest import CONF, Run, command, environment


def directories(work: Path) -> list[str]:
    """The run directories below a working directory."""
    return sorted(path.parent.name for path in work.glob("*/*/status.json"))


def started(work: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own, in its own process group as under a shell."""
    return subprocess.Popen(
        command(*arguments),
        cwd=work,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(work: Path, pattern: str, child: subprocess.Popen[str]) -> Path:
    """The first file of a pattern, once it is there."""
    for _ in range(600):
        found = list(work.glob(pattern))
        if found:
            return found[0]
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"{pattern} never appeared")


def gone(process_id: int) -> bool:
    """Whether a process ends soon."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_refused_command_line_creates_nothing(pgolf_process: Run, work: Path) -> None:
    result = pgolf_process("model.dmi=3", "seed=x", "ttt=phasd")
    assert result.returncode == 2
    assert "3 problems in the configuration; nothing was started." in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert list(work.iterdir()) == []


def test_help_and_hydras_own_flags(pgolf_process: Run, work: Path) -> None:
    shown = pgolf_process("--help").stdout
    for word in (
        "usage: pgolf",
        "doctor",
        "model/attention/gate: none, sparse",
        "--multirun seed=42,0,1234",
    ):
        assert word in shown
    config = pgolf_process("--cfg", "job", "model.dim=7").stdout
    assert "dim: 7" in config and "hydra:" not in config
    assert pgolf_process("--version").stdout.startswith("pgolf 0.")
    word = pgolf_process("doctr")
    assert word.returncode == 2 and "did you mean 'doctor'?" in word.stderr
    broken = pgolf_process("--cfg", "job", "model.dmi=7")
    assert broken.returncode == 2 and "did you mean" in broken.stderr and "Traceback" not in broken.stderr
    assert list(work.iterdir()) == []


def test_a_sweep_goes_on_after_a_failure_and_skips_what_is_done(pgolf_process: Run, work: Path) -> None:
    sweep = ("--multirun", "seed=1,2,3", "train.behaviour=fail-2")
    result = pgolf_process(*sweep)
    assert result.returncode == 1
    assert len(directories(work)) == 3
    ending = result.stdout.rpartition("sweep:")[2].split("\n")
    assert [line.split()[0] for line in ending if line.startswith("  ")] == [
        "done",
        "failed",
        "done",
    ]
    assert "the fake broke on rank 0" in ending[2]
    again = pgolf_process(*sweep)
    assert again.returncode == 1 and "3 jobs, 2 of them finished before." in again.stdout
    ending = again.stdout.rpartition("sweep:")[2].split("\n")
    assert [line.split()[0] for line in ending if line.startswith("  ")] == [
        "skipped",
        "failed",
        "skipped",
    ]
    starts = {path.parent.name[-1]: path.read_text() for path in work.glob("multirun/*/starts")}
    assert starts == {"1": "x", "2": "xx", "3": "x"}


def test_a_reader_that_goes_away_does_not_end_the_run(work: Path) -> None:
    child = started(work, "seed=4")
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(timeout=60) == 0
    (status,) = work.glob("runs/*/status.json")
    assert read_json(status)["state"] == "done"
    assert "rank 0 of 1 trains" in (status.parent / "train.log").read_text()


def test_fail_fast_ends_the_sweep(pgolf_process: Run, work: Path) -> None:
    result = pgolf_process("-m", "seed=1,2,3", "train.behaviour=fail-1", "fail_fast=true")
    assert result.returncode == 1
    assert len(directories(work)) == 1
    assert result.stdout.count("not started") == 2


def test_two_ranks_and_the_error_of_one(pgolf_process: Run, work: Path) -> None:
    result = pgolf_process("launch.nproc=2", "train.behaviour=fail", "train.victim=1")
    assert result.returncode == 1
    assert "rank 0 of 2 trains" in result.stdout and "rank 1 of 2" not in result.stdout
    assert "pgolf: rank 1: RuntimeError: the fake broke on rank 1 (traceback in " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    (log,) = work.glob("runs/*/train.log")
    assert "rank 1 failed:" in log.read_text()
    well = pgolf_process("launch.nproc=2")
    assert well.returncode == 0, well.stdout + well.stderr
    (summary,) = work.glob("runs/*/summary.json")
    assert read_json(summary)["world"] == 2


def test_a_rank_that_is_killed_is_named(pgolf_process: Run, work: Path) -> None:
    result = pgolf_process("launch.nproc=2", "train.behaviour=die", "train.victim=1")
    assert result.returncode == 1 and "rank 1 was ended by SIGKILL" in result.stdout


def test_a_rank_that_hangs_ends_the_run_after_the_timeout(pgolf_process: Run, work: Path) -> None:
    result = pgolf_process("launch.nproc=2", "train.behaviour=hang", "train.victim=1", "launch.timeout_seconds=4")
    assert result.returncode == 1, result.stdout
    assert "waited for each other in vain: one of them hangs" in result.stdout
    assert "launch.timeout_seconds" in result.stdout and "Traceback" not in result.stdout + result.stderr
    (status,) = work.glob("runs/*/status.json")
    assert read_json(status)["state"] == "failed" and "waited" in read_json(status)["error"]


def torchrun(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a user types: torchrun on the module itself."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "pgolf"]
    return subprocess.run(
        [sys.executable, *launcher, "--config-path", str(CONF), *arguments],
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_torchrun_directly_makes_one_directory(work: Path) -> None:
    result = torchrun(work, "seed=5")
    assert result.returncode == 0, result.stderr
    (summary,) = work.glob("runs/*/summary.json")
    assert read_json(summary)["world"] == 2
    assert result.stdout.count("run directory ") == 2  # the first line and the last, of rank 0 alone
    again = torchrun(work, "seed=5")
    assert again.returncode == 0 and again.stdout.count("is finished") == 1
    failed = torchrun(work, "seed=6", "train.behaviour=fail", "train.victim=1")
    assert failed.returncode != 0 and "pgolf: rank 1: RuntimeError" in failed.stdout
    states = [read_json(path)["state"] for path in sorted(work.glob("runs/*/status.json"))]
    assert sorted(states) == ["done", "failed"]


def test_a_sweep_under_torchrun_is_refused(work: Path) -> None:
    result = subprocess.run(
        command("--multirun", "seed=1,2"),
        cwd=work,
        env={**environment(), "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1 and "a sweep cannot run under torchrun" in result.stderr
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "overrides"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ("launch.nproc=2", "train.victim=1"))],
)
def test_an_interrupted_run_says_so_and_continues(
    work: Path, pgolf_process: Run, number: signal.Signals, overrides: tuple[str, ...]
) -> None:
    child = started(work, "train.behaviour=hang", *overrides)
    hanging = wait_for(work, "runs/*/hanging", child)
    worker = int(hanging.read_text())
    child.send_signal(number)
    shown, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert shown.rstrip().endswith("interrupted; the same command continues.")
    assert "Traceback" not in shown
    assert gone(worker)
    status = read_json(hanging.parent / "status.json")
    assert (status["state"], status["error"]) == (
        "failed",
        "interrupted; the same command continues",
    )


def test_kill_9_of_the_parent_leaves_no_orphan_and_no_lock(work: Path) -> None:
    arguments: Any = ("train.behaviour=hang", "train.victim=1", "launch.nproc=2")
    child = started(work, *arguments)
    hanging = wait_for(work, "runs/*/hanging", child)
    worker = int(hanging.read_text())
    second = subprocess.run(
        command(*arguments), cwd=work, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1 and f"is in use by process {child.pid}" in second.stdout
    child.kill()
    child.wait()
    assert gone(worker)
    assert read_json(hanging.parent / "status.json")["state"] == "running"

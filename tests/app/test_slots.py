"""GPUs that several jobs share: each has its own, waits for them, and loses them when it dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf.app import slots
from pgolf.app.launch import Launch
from pgolf.errors import UserError

GPUS = ["0", "1", "GPU-3a/b"]


def test_jobs_take_different_gpus_and_give_them_back(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        slots.taken(GPUS, 1, said.append, tmp_path) as one,
        slots.taken(GPUS, 2, said.append, tmp_path) as two,
    ):
        assert (one.gpus, two.gpus) == (["0"], ["1", "GPU-3a/b"])
    with slots.taken(GPUS, 3, said.append, tmp_path) as all_of_them:
        assert all_of_them.gpus == GPUS
    assert said == []


def test_a_job_waits_without_keeping_what_it_cannot_use(tmp_path: Path) -> None:
    """Two are wanted and one is free: it stays free for others, and the wait is said once."""
    said, looks = [], []
    first = slots.taken(GPUS, 2, said.append, tmp_path)
    first.__enter__()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        with slots.taken(GPUS, 1, said.append, tmp_path) as free:
            assert free.gpus == ["GPU-3a/b"]
        if len(looks) == 3:
            first.__exit__(None, None, None)

    with slots.taken(GPUS, 2, said.append, tmp_path, sleep) as second:
        assert second.gpus == ["0", "1"]
    assert len(looks) == 3 and said == ["waiting for 2 of 3 GPU(s): other jobs have them"]


def test_a_killed_job_frees_its_gpu_once_its_children_are_gone(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from pgolf.app import slots\n"
        "with slots.taken(['0'], 1, print, Path(sys.argv[1])) as held:\n"
        "    print(held.gpus, flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "['0']\n"
    with pytest.raises(TimeoutError), slots.taken(["0"], 1, print, tmp_path, _give_up):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with slots.taken(["0"], 1, print, tmp_path, _give_up) as held:
        heir = os.dup(held.descriptors[0])  # as a child process inherits it
    with pytest.raises(TimeoutError), slots.taken(["0"], 1, print, tmp_path, _give_up):
        pass
    os.close(heir)
    with slots.taken(["0"], 1, print, tmp_path, _give_up):
        pass


def _give_up(seconds: float) -> None:
    raise TimeoutError


def test_what_the_machine_shows_is_what_is_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", " 3, 5,")
    assert slots.visible_gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.visible_gpus() == []
    with pytest.raises(UserError, match=r"launch.nproc=1, but this machine shows 0 GPU"):
        slots.taken([], 1, print, tmp_path).__enter__()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep the list of GPUs"):
        slots.taken(["0"], 1, print, tmp_path / "file").__enter__()


def test_sharing_needs_a_number_of_gpus() -> None:
    with pytest.raises(ValueError, match="set nproc"):
        Launch(nproc=None, timeout_seconds=1.0, share_gpus=True)
    with pytest.raises(ValueError, match="timeout_seconds=0"):
        Launch(nproc=1, timeout_seconds=0.0, share_gpus=False)

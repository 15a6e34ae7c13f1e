"""Real processes of `python -m pgolf`: a tiny corpus, a tiny model, eight steps."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
WORDS = ["def", "return", "class", "value", "list", "string", "number", "text", "index", "item", "object", "method"]
STEPS = 8
TINY = [
    "data=text",
    "data.tokenizer.vocab_size=300",
    "data.val_fraction=0.1",
    "data.shard_tokens=4000",
    "model.dim=32",
    "model.depth.num_layers=3",
    "model.attention.num_heads=4",
    "model.attention.num_kv_heads=2",
    "model.attention.rope.dims=4",
    "model.mlp.multiple=2.0",
    f"train.max_steps={STEPS}",
    "train.batch_tokens=512",
    "train.micro_batch_tokens=256",
    "train.sequence_tokens=64",
    "train.checkpoint_seconds=0.0",
    "ttt.lora.rank=2",
    "ttt.prefix_docs=2",
    "ttt.phases=1",
    "quant.calibration_batches=2",
    "audit.documents=2",
    "audit.max_tokens=48",
    "audit.flips=1",
    "track=none",
]
Result = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Ground:
    """Documents, and the folder of prepared data that all runs share."""

    texts: Path
    data: Path

    def job(self, runs: Path, *overrides: str) -> list[str]:
        """The tiny main job with its run directories below `runs`."""
        places = [f"data.source.paths=[{self.texts}]", f"paths.data={self.data}", f"paths.runs={runs}"]
        return [*TINY, *places, *overrides]


def environment(hold: str | None = None) -> dict[str, str]:
    """The environment of a real process; `hold` is what site/sitecustomize.py says."""
    path = os.pathsep.join([str(SITE), str(CHECKOUT)])
    extra = {"PGOLF_HOLD": hold} if hold else {}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **extra}


def pgolf(*arguments: str, launcher: tuple[str, ...] = (), cwd: Path | None = None) -> Result:
    """`python -m pgolf` to its end."""
    command = [sys.executable, *launcher, "-m", "pgolf", *arguments]
    return subprocess.run(
        command, cwd=cwd or SITE, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def succeed(*arguments: str, launcher: tuple[str, ...] = (), cwd: Path | None = None) -> str:
    """What a process that must end well printed."""
    result = pgolf(*arguments, launcher=launcher, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def refused(result: Result, status: int, *words: str) -> str:
    """The one sentence of a run that ended badly: no traceback, the exit status, the words."""
    shown = result.stdout + result.stderr
    assert "Traceback" not in shown, shown
    assert result.returncode == status, shown
    sentences = [line for line in shown.splitlines() if line.startswith("pgolf: ")]
    assert len(sentences) == 1, shown
    for word in words:
        assert word in shown, shown
    return sentences[0]


def held(marker: Path, name: str, count: int, *arguments: str) -> subprocess.Popen[str]:
    """A process that waits just before the file `name` is written for the `count`-th time; the marker names it (one of
    several ranks has a number of its own)."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pgolf", *arguments],
        env=environment(f"{name}:{count}:{marker}"),
        cwd=SITE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(6000):
        if marker.exists() or child.poll() is not None:
            break
        time.sleep(0.02)
    assert marker.exists(), "".join(child.communicate())
    return child


def end_at(directory: Path, name: str, count: int, number: signal.Signals, *arguments: str) -> Result:
    """Start a process, send it a signal just before the file `name` is written for the `count`-th time."""
    child = held(directory / f"held-{time.monotonic_ns()}", name, count, *arguments)
    child.send_signal(number)
    output, errors = child.communicate(timeout=60)
    return subprocess.CompletedProcess(child.args, child.returncode, output, errors)


def only(parent: Path, pattern: str = "*-seed*") -> Path:
    """The one directory of a pattern."""
    (found,) = parent.glob(pattern)
    return found


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Sixty small documents of repeating words."""
    folder = tmp_path_factory.mktemp("ground")
    texts, generator = folder / "texts", random.Random(5)
    texts.mkdir()
    for number in range(60):
        lines = [" ".join(generator.choice(WORDS) for _ in range(10)) + f" {number * 7 + row}." for row in range(8)]
        (texts / f"document{number:02d}.txt").write_text("\n".join(lines) + "\n")
    return Ground(texts, folder / "data")


@pytest.fixture(scope="session")
def finished(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one finished run; tests read it and may add evaluations below it, nothing else."""
    runs = tmp_path_factory.mktemp("finished")
    succeed(*ground.job(runs))
    return only(runs)


def mount(*arguments: str) -> int:
    """The exit status of `mount`; 1 where there is no such program."""
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 1


def fill(disk: Path) -> None:
    """Write until not even 512 bytes more have room."""
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(512))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that a test may fill, shrink, or make read-only with `mount`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)):
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True, capture_output=True)

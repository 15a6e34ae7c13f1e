"""Two processes train, and one is killed, all are asked to end, the newest checkpoint is damaged, the disk is full: the
same command goes on to the same result."""

import os
import signal
from pathlib import Path

import pytest

from pgolf.files import read_json
from pgolf.train.checkpoint import load

from .conftest import Ground, fill, held, mount, only, pgolf, refused, succeed


def test_two_processes_survive_what_happens_to_them(ground: Ground, finished: Path, tmp_path: Path) -> None:
    job = ground.job(tmp_path / "runs", "launch.nproc=2")

    marker = tmp_path / "first"
    child = held(marker, "state.pgolf", 3, *job)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    shown = "".join(child.communicate(timeout=90))
    assert child.returncode == 1 and "pgolf: rank 0 was ended by SIGKILL" in shown and "Traceback" not in shown
    directory = only(tmp_path / "runs")
    assert read_json(directory / "status.json")["state"] == "failed"

    child = held(tmp_path / "second", "state.pgolf", 2, *job)
    child.send_signal(signal.SIGTERM)  # to the parent, as a scheduler does
    shown, errors = child.communicate(timeout=90)
    assert child.returncode == 130 and "Traceback" not in shown + errors, shown + errors
    assert "continuing from step 2" in shown and "asked to end: step " in shown
    assert shown.rstrip().endswith("interrupted; the same command continues.")
    assert read_json(directory / "status.json")["error"] == "interrupted; the same command continues"

    newest = directory / "checkpoint" / "state.pgolf"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    last = pgolf(*job)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "state.pgolf is damaged: continuing from the state before it" in last.stdout
    assert (directory / "checkpoint" / "damaged.pgolf").is_file()
    result, alone = (read_json(folder / "summary.json") for folder in (directory, finished))
    assert result["val_bpb"] == pytest.approx(alone["val_bpb"], abs=1e-3)
    assert result["train"]["steps"] == alone["train"]["steps"] and result["train"]["tokens"] == alone["train"]["tokens"]
    assert set(result["phases"]["training"]) == {"compile", "train", "calibrate", "generate", "quantise", "pack"}
    assert result["phases"]["training"]["train"] == pytest.approx(result["train"]["seconds"])
    assert set(result["phases"]["scoring"]) == {"load", "compile", "precompute", "score"}


def _working_in(directory: Path) -> list[int]:
    """Processes that name a directory on their command line."""
    lines = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    return [int(path.parent.name) for path, line in lines.items() if str(directory).encode() in line]


def test_two_processes_end_together_when_the_disk_fills_up(ground: Ground, finished: Path, small_disk: Path) -> None:
    """There is room for one checkpoint and not for the next; then for not a byte more; then for all."""
    newest = finished / "checkpoint" / "state.pgolf"
    room = 1.6 * newest.stat().st_size
    assert mount("-o", f"remount,size={int(room)}", str(small_disk)) == 0
    job = ground.job(small_disk / "runs", "launch.nproc=2")
    refused(pgolf(*job), 1, "rank 0: cannot write", "state.pgolf: No space left on device. Free some space")
    directory = only(small_disk / "runs")
    assert read_json(directory / "status.json")["state"] == "failed" and not _working_in(directory)
    assert load(directory / "checkpoint" / "state.pgolf")["progress"]["step"] == 1
    assert not list(directory.rglob("*.tmp"))

    fill(small_disk)
    refused(pgolf(*job), 1, "No space left on device")  # and no room for the notes by which ranks tell each other
    assert not _working_in(directory)

    assert mount("-o", "remount,size=8m", str(small_disk)) == 0
    assert "continuing from step 1" in succeed(*job)
    result, alone = (read_json(folder / "summary.json") for folder in (directory, finished))
    assert result["val_bpb"] == pytest.approx(alone["val_bpb"], abs=1e-3)

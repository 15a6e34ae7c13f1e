"""Runs that end too early, in every way: the same command brings them to the same numbers."""

import signal
from pathlib import Path

from pgolf.files import read_json
from pgolf.report.runs import read_events

from .conftest import STEPS, Ground, end_at, only, succeed


def test_a_run_that_is_killed_and_interrupted_ends_with_the_same_bits(
    ground: Ground, finished: Path, tmp_path: Path
) -> None:
    job = ground.job(tmp_path)
    killed = end_at(tmp_path, "state.pgolf", 3, signal.SIGKILL, *job)  # in the middle of writing a checkpoint
    assert killed.returncode == -signal.SIGKILL
    directory = only(tmp_path)
    assert read_json(directory / "status.json") | {"digest": ""} == {
        "state": "running",
        "stage": "train",
        "digest": "",
        "error": None,
    }
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"event": "ste')  # as a kill in the middle of a line leaves it
    stopped = end_at(tmp_path, "state.pgolf", 2, signal.SIGINT, *job)  # Ctrl-C, again in training
    assert stopped.returncode == 130
    assert stopped.stdout.rstrip().endswith("interrupted; the same command continues.")
    assert "Traceback" not in stopped.stdout + stopped.stderr and stopped.stderr == ""
    assert "continuing from step 2" in stopped.stdout
    assert read_json(directory / "status.json")["error"] == "interrupted; the same command continues"
    packing = end_at(tmp_path, "code.zip", 1, signal.SIGKILL, *job)  # the artifact is there, its record is not
    assert packing.returncode == -signal.SIGKILL and f"train  {STEPS}/{STEPS}" in packing.stdout
    assert (directory / "artifact.pgolf").is_file() and not (directory / "code.zip").exists()
    scoring = end_at(tmp_path, "scores.npz", 2, signal.SIGKILL, *job)  # the final score is not written down yet
    assert scoring.returncode == -signal.SIGKILL
    assert f"train  {STEPS}/{STEPS}" not in scoring.stdout and "packing " in scoring.stdout
    assert read_json(directory / "status.json")["stage"] == "final"
    shown = succeed(*job)
    assert "packing " not in shown and "post_quant: " not in shown and "final: " in shown
    _same(directory, finished)
    events, damaged = read_events(directory / "metrics.jsonl")
    assert len(damaged) == 1  # the torn line alone
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert [path.name for path in directory.rglob("*.tmp")] == []


def _same(directory: Path, reference: Path) -> None:
    for name in ("artifact.pgolf", "model.safetensors"):
        assert (directory / name).read_bytes() == (reference / name).read_bytes(), name
    one, other = (read_json(folder / "summary.json") for folder in (directory, reference))
    for key in ("val_bpb", "val_loss", "samples", "baselines", "digest"):
        assert one[key] == other[key], key
    for stage, found in one["stages"].items():
        assert found["val_bpb"] == other["stages"][stage]["val_bpb"], stage
    assert one["train"]["steps"] == other["train"]["steps"] and one["train"]["tokens"] == other["train"]["tokens"]

"""Two processes work on one run: started by pgolf, and under the user's own torchrun."""

import shutil
from pathlib import Path

import pytest

from pgolf.files import read_json, write_json
from pgolf.register import FILE

from .conftest import STEPS, Ground, only, pgolf, succeed

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def of_two(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of two processes that pgolf started; tests read it and copy it."""
    runs = tmp_path_factory.mktemp("of_two")
    succeed(*ground.job(runs, "launch.nproc=2"))
    return only(runs)


@pytest.fixture(scope="module")
def of_torchrun(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of two processes under the user's torchrun."""
    runs = tmp_path_factory.mktemp("of_torchrun")
    succeed(*ground.job(runs), launcher=TORCHRUN)
    return only(runs)


@pytest.mark.parametrize("started", ["of_two", "of_torchrun"])
def test_two_processes_agree_with_one(finished: Path, started: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(started)
    assert directory.name == finished.name
    assert {path.name for path in directory.parent.iterdir()} == {directory.name, FILE}
    assert read_json(directory / "run.json")["world_size"] == 2
    two, one = (read_json(folder / "summary.json") for folder in (directory, finished))
    assert two["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-3)
    for stage, found in two["stages"].items():
        assert found["val_bpb"] == pytest.approx(one["stages"][stage]["val_bpb"], abs=1e-3), stage
        assert (found["tokens"], found["bytes"]) == (one["stages"][stage]["tokens"], one["stages"][stage]["bytes"])
    assert two["audit"]["verdict"] == "pass"


def _cut_off(directory: Path, *stages: str) -> None:
    """Make a finished run look as if it had been killed before `stages`."""
    record = read_json(directory / "run.json")
    for stage in stages:
        del record["stages"][stage]
    write_json(directory / "run.json", record)
    write_json(directory / "status.json", read_json(directory / "status.json") | {"state": "running"})


@pytest.mark.parametrize("first", ["compress", "samples"])
def test_two_processes_resume_at_a_stage_of_the_leader(
    ground: Ground, of_two: Path, tmp_path: Path, first: str
) -> None:
    """Stages that the leader does alone need nothing that waits for the others."""
    directory = Path(shutil.copytree(of_two, tmp_path / of_two.name))
    before = read_json(directory / "summary.json")
    later = {"compress": ("compress", "post_quant", "final", "audit", "samples"), "samples": ("samples",)}[first]
    _cut_off(directory, *later)
    shown = succeed(*ground.job(tmp_path, "launch.nproc=2"))
    assert f"continuing the run in {directory}" in shown and f"train  {STEPS}/{STEPS}" not in shown
    after = read_json(directory / "summary.json")
    assert after["val_bpb"] == before["val_bpb"]
    assert after["artifact"] == before["artifact"]
    assert after["samples"] == before["samples"]


def test_a_run_does_not_mix_two_data_sets(tmp_path: Path, ground: Ground) -> None:
    texts = tmp_path / "texts"
    shutil.copytree(ground.texts, texts)
    own = Ground(texts, tmp_path / "data")
    succeed(*own.job(tmp_path / "runs"))
    directory = only(tmp_path / "runs")
    before = read_json(directory / "summary.json")
    for document in sorted(texts.iterdir())[:3]:
        document.unlink()
    later = ("post_quant", "final", "audit", "samples")
    _cut_off(directory, *later)
    succeed(*own.job(tmp_path / "runs"))  # the data it began with are still prepared
    assert read_json(directory / "summary.json")["val_bpb"] == before["val_bpb"]
    shutil.rmtree(own.data)
    _cut_off(directory, *later)
    result = pgolf(*own.job(tmp_path / "runs"))
    assert result.returncode == 1
    assert "began with other data" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_processes_that_cannot_share_a_step_are_refused_before_any_work(tmp_path: Path, ground: Ground) -> None:
    result = pgolf(*ground.job(tmp_path, "launch.nproc=3"))
    assert result.returncode == 2
    assert "2 micro-batches a step cannot be shared by 3" in result.stderr
    assert not list(tmp_path.iterdir())

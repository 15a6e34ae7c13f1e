"""Two processes work on one run: started by pgolf, and under the user's own torchrun."""

from pathlib import Path

import pytest

from pgolf.files import read_json

from .conftest import Ground, only, succeed

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.mark.parametrize(("launcher", "overrides"), [((), ("launch.nproc=2",)), (TORCHRUN, ())])
def test_two_processes_agree_with_one(
    ground: Ground, finished: Path, tmp_path: Path, launcher: tuple[str, ...], overrides: tuple[str, ...]
) -> None:
    succeed(*ground.job(tmp_path, *overrides), launcher=launcher)
    directory = only(tmp_path)
    assert directory.name == finished.name and [path.name for path in tmp_path.iterdir()] == [directory.name]
    assert read_json(directory / "run.json")["world_size"] == 2
    two, one = (read_json(folder / "summary.json") for folder in (directory, finished))
    assert two["val_bpb"] == pytest.approx(one["val_bpb"], abs=1e-3)
    for stage, found in two["stages"].items():
        assert found["val_bpb"] == pytest.approx(one["stages"][stage]["val_bpb"], abs=1e-3), stage
        assert (found["tokens"], found["bytes"]) == (one["stages"][stage]["tokens"], one["stages"][stage]["bytes"])
    assert two["audit"]["verdict"] == "pass"

"""Other launchers and several machines: Hydra's plugins for clusters, each where it is installed, and torchrun over two
nodes, played by one machine."""

import importlib.util
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pgolf.files import read_json

from .conftest import CONF, REAL_CONF, Run, environment

SWEEP = ("--multirun", "seed=1,2", "train.behaviour=fail-2")
LAUNCHERS = {
    "hydra_plugins.hydra_submitit_launcher": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=3"),
    "hydra_plugins.hydra_joblib_launcher": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "hydra_plugins.hydra_ray_launcher": ("hydra/launcher=ray_gpus", "hydra.launcher.ray.remote.num_gpus=0"),
}


def require(plugin: str) -> None:
    try:
        found = importlib.util.find_spec(plugin)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{plugin} is not installed")


@pytest.fixture
def with_launchers(conf: Path) -> Path:
    """The small configuration with the shipped launchers."""
    shutil.copytree(REAL_CONF / "hydra", conf / "hydra")
    return conf


@pytest.mark.parametrize("plugin", LAUNCHERS)
def test_a_sweep_goes_through_another_launcher(
    pgolf_process: Run, work: Path, with_launchers: Path, plugin: str
) -> None:
    """Jobs in other processes make the same directories; one fails and the other is done, and the sweep says so."""
    require(plugin)
    result = pgolf_process(*SWEEP, *LAUNCHERS[plugin], conf=with_launchers)
    assert result.returncode == 1, result.stdout + result.stderr
    ending = [line for line in result.stdout.rpartition("sweep:")[2].splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in ending] == ["done", "failed"]
    assert "the fake broke on rank 0" in ending[1]
    states = {path.parent.name[-1]: read_json(path)["state"] for path in work.glob("multirun/*/status.json")}
    assert states == {"1": "done", "2": "failed"}
    again = pgolf_process(*SWEEP, *LAUNCHERS[plugin], conf=with_launchers)
    assert "2 jobs, 1 of them finished before." in again.stdout


@pytest.mark.parametrize(("name", "gpus"), [("slurm_node", 8), ("slurm_gpu", 1)])
def test_the_launchers_for_slurm_compose(pgolf_process: Run, with_launchers: Path, name: str, gpus: int) -> None:
    """They need Slurm to run; here their settings are taken by the plugin's own schema."""
    require("hydra_plugins.hydra_submitit_launcher")
    shown = pgolf_process(
        "seed=1", f"hydra/launcher={name}", "--cfg", "hydra", "-p", "hydra.launcher", conf=with_launchers
    )
    settings = yaml.safe_load(shown.stdout)
    assert settings["_target_"].endswith("SlurmLauncher")
    assert (settings["gpus_per_node"], settings["tasks_per_node"], settings["nodes"]) == (gpus, 1, 1)


def test_torchrun_over_two_nodes_makes_one_run(work: Path) -> None:
    """Each node has its own torchrun; the first process of the first one leads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def node(rank: int) -> subprocess.Popen[str]:
        place = [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place, "-m", "pgolf"]
        return subprocess.Popen(
            [sys.executable, *launcher, "--config-path", str(CONF), "seed=3"],
            cwd=work,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    nodes = [node(0), node(1)]
    shown = [child.communicate(timeout=120)[0] for child in nodes]
    assert [child.returncode for child in nodes] == [0, 0], shown
    (summary,) = work.glob("runs/*/summary.json")
    assert read_json(summary)["world"] == 2
    assert "run directory " in shown[0] and "run directory " not in shown[1]


def test_a_gpu_that_is_not_there_is_a_sentence(pgolf_process: Run, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = pgolf_process("launch=packed")
    assert result.returncode == 1 and "this machine shows 0 GPU(s)" in result.stdout

"""Weights of a run as a published checkpoint, and a published checkpoint as a run that is scored without training."""

import shutil
import subprocess
import sys
from pathlib import Path

import torch

from pgolf.files import read_json

from .conftest import CHECKOUT, Ground, environment, only, pgolf, refused, succeed


def export(run: Path, file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "scripts" / "export_checkpoint.py"), str(run), str(file), *flags]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)


def evaluate(ground: Ground, runs: Path, file: Path, *overrides: str) -> tuple[str, ...]:
    return ("eval", f"checkpoint={file}", *ground.job(runs, *overrides))


def test_a_checkpoint_is_scored_as_the_run_that_it_came_from(ground: Ground, finished: Path, tmp_path: Path) -> None:
    file, runs = tmp_path / "final_model.pt", tmp_path / "runs"
    made = export(finished, file, "--banked")
    assert made.returncode == 0, made.stderr
    assert "qo_bank" in torch.load(file, weights_only=True)
    again = export(finished, file)
    assert again.returncode == 1 and "is there already" in again.stderr

    shown = succeed(*evaluate(ground, runs, file))
    assert "now the weights before quantisation of" in shown and "Traceback" not in shown
    run = only(runs)
    assert "-checkpoint-" in run.name
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    expected, summary = read_json(finished / "summary.json"), read_json(only(run, "eval-*") / "summary.json")
    for stage, result in expected["stages"].items():
        assert summary["stages"][stage]["val_loss"] == result["val_loss"], stage
    assert summary["artifact"]["weight_bytes"] == expected["artifact"]["weight_bytes"]
    assert summary["train"] is None and summary["audit"]["verdict"] == "pass"
    assert "is finished" in succeed(*evaluate(ground, runs, file))

    succeed("eval", f"run={run}", "ttt=none")  # it has no artifact of its own: quantised again
    assert len(list(run.glob("eval-*/summary.json"))) == 2
    assert read_json(run / "run.json")["checkpoint"]["file"] == str(file)


def test_what_does_not_fit_leaves_nothing(ground: Ground, finished: Path, tmp_path: Path) -> None:
    file, runs = tmp_path / "final_model.pt", tmp_path / "runs"
    assert export(finished, file).returncode == 0
    wrong = evaluate(ground, runs, file, "model.dim=48", "model/smear=smear")
    sentence = refused(pgolf(*wrong), 1, "missing: smear.smear_lambda", "of another shape", "experiment=NAME")
    assert "the model has [" in sentence and " and 25 more" in sentence
    refused(pgolf(*evaluate(ground, runs, tmp_path / "nowhere.pt")), 1, "there is no such file")
    refused(pgolf("eval", f"checkpoint={file}", f"run={finished}"), 1, "a run or a checkpoint")
    shutil.copy(CHECKOUT / "README.md", file)
    refused(pgolf(*evaluate(ground, runs, file)), 1, "damaged")
    assert not runs.exists() or not list(runs.iterdir())
    missing = export(tmp_path, tmp_path / "other.pt")
    assert missing.returncode == 1 and "model.safetensors" in missing.stderr and not (tmp_path / "other.pt").exists()

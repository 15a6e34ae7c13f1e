"""Stands for pgolf.run: writes a summary, or does what `train.behaviour` says."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.errors import UserError
from pgolf.files import read_json, write_json


@dataclass
class Recipe:
    name: str
    seed: int
    kernels: str
    fused: str | list[str]
    compile_scoring: bool
    data_root: Path
    cache_root: Path
    data: Any
    model: Any
    optim: Any
    train: Any
    quant: Any
    ttt: Any
    audit: Any
    description: dict[str, Any]
    modules: tuple[str, ...]


def execute(recipe, identity, run_directory, group, console, tracker):
    behaviour = recipe.train.behaviour
    victim = recipe.train.victim
    if group.leads:
        write_json(
            run_directory / "status.json",
            read_json(run_directory / "status.json") | {"stage": "train"},
        )
        starts = run_directory / "starts"
        starts.write_text((starts.read_text() if starts.exists() else "") + "x")
    console.say(f"rank {group.rank} of {group.world_size} trains")
    with console.task("train", recipe.train.steps) as task:
        for step in range(recipe.train.steps):
            task.update(step + 1, loss=3.0 - 0.1 * step)
            if group.leads:
                tracker.log({"event": "step", "step": step + 1, "train_loss": 3.0 - 0.1 * step})
    if victim in (None, group.rank):
        if behaviour == "fail" or behaviour == f"fail-{recipe.seed}":
            raise RuntimeError(f"the fake broke on rank {group.rank}")
        if behaviour == "refuse":
            raise UserError("the disk is full: free some space.")
        if behaviour == "hang":
            (run_directory / "hanging").write_text(str(os.getpid()))
            time.sleep(60)
        if behaviour == "die":
            os.kill(os.getpid(), 9)
    from torch import ones

    summary = _summary(recipe, identity, run_directory)
    if behaviour == "too_large":
        summary["artifact"] |= {
            "total_bytes": 16_001_200,
            "fits": False,
            "margin_bytes": -1_200,
            "reading": "shipped",
            "savings": [{"change": "quant.coder=rans: another coder", "bytes": 900, "exact": True}],
        }
    world = int(group.sum_(ones(1)).item())
    summary |= {"world": world}
    if group.leads:
        write_json(run_directory / "summary.json", summary)
        with open(run_directory / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"event": "summary", "val_bpb": summary["val_bpb"]}) + "\n")
    return summary


def evaluate(recipe, identity, source_directory, run_directory, group, console, tracker, requantise):
    console.say(f"scores {Path(source_directory).name} again, requantise={requantise}")
    summary = _summary(recipe, identity, run_directory) | {"val_bpb": 1.25}
    if group.leads:
        write_json(run_directory / "summary.json", summary)
    return summary


def audit_run(recipe, directory, group, console):
    verdict = "fail" if recipe.audit.probes == 13 else "pass"
    return {
        "verdict": verdict,
        "checks": [
            {
                "id": "C1",
                "name": "causality",
                "verdict": verdict,
                "probed": 3,
                "largest": 0.0,
                "detail": "no score moved",
            }
        ],
    }


def _summary(recipe, identity, run_directory):
    stage = {"val_bpb": 1.5, "val_loss": 2.5, "tokens": 100, "bytes": 300, "seconds": 1.0}
    return {
        "val_bpb": 1.5,
        "val_loss": 2.5,
        "seed": recipe.seed,
        "experiment": recipe.name,
        "digest": identity["digest"],
        "stages": {"pre_quant": stage, "post_quant": stage | {"val_bpb": 1.6}, "final": stage},
        "artifact": {
            "weight_bytes": 1000,
            "code_bytes": 200,
            "total_bytes": 1200,
            "limit_bytes": 16_000_000,
            "fits": True,
            "margin_bytes": 15_998_800,
        },
        "train": {"steps": recipe.train.steps, "tokens": 4096, "seconds": 2.0},
        "model": {"parameters": 1234},
        "baselines": {"unigram": 4.5, "brotli": 2.1, "xz": 2.2, "xz_primed": None},
        "samples": [{"prompt": "def ", "text": "main():\n    pass"}],
        "seconds": {"train": 2.0, "score": 1.0},
        "audit": {
            "verdict": "pass",
            "checks": [
                {
                    "id": "C1",
                    "name": "causality",
                    "verdict": "pass",
                    "probed": 3,
                    "largest": 0.0,
                    "detail": "no score moved",
                }
            ],
        },
        "run_directory": str(run_directory),
    }

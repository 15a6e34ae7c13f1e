"""Synthetic run directories with the whole schema of a real one, for tests of what reads them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

NUM_DOCUMENTS = 120


def fake_config(seed: int, **changes: Any) -> dict[str, Any]:
    """A resolved configuration; `changes` replaces root keys."""
    config: dict[str, Any] = {
        "seed": seed,
        "name": "mini",
        "paths": {"runs": "runs", "data": "datasets"},
        "track": {"_target_": "pgolf.absent.absent"},
        "model": {"_target_": "pgolf.model.gpt.GPT", "dim": 64, "num_layers": 4, "qk_gain": 5.0},
        "optim": {"matrix": {"lr": 0.026}},
        "train": {
            "_target_": "pgolf.train.loop.Trainer",
            "max_steps": 200,
            "max_seconds": None,
            "loop_at": 0.35,
            "schedule": {
                "_target_": "pgolf.optim.schedule.Warmdown",
                "fraction": 0.75,
                "floor": 0.1,
            },
        },
        "ttt": {"_target_": "pgolf.ttt.phased.Phased", "chunk": 48, "seed": seed},
    }
    config.update(changes)
    return config


def fake_run(
    directory: Path,
    *,
    seed: int = 42,
    bpb: float = 1.25,
    name: str = "mini",
    config: dict[str, Any] | None = None,
    data_digest: str = "d" * 64,
    code_hash: str = "c" * 64,
    state: str = "done",
    num_documents: int = NUM_DOCUMENTS,
    steps: int = 200,
    weight_bytes: int = 251_204,
    train_seconds: float = 81.0,
) -> Path:
    """Write a run directory whose per-document scores sum to exactly `bpb`; returns it."""
    directory.mkdir(parents=True)
    scores = fake_scores(seed, bpb, num_documents)
    np.savez(directory / "scores.npz", **scores)
    tokens, num_bytes = int(scores["tokens"].sum()), int(scores["bytes"].sum())
    stages = {}
    for stage, seconds in (("pre_quant", 4.1), ("post_quant", 4.0), ("final", 31.5)):
        nats = float(scores[f"nats_{stage}"].sum())
        stages[stage] = {
            "val_bpb": nats / math.log(2) / num_bytes,
            "val_loss": nats / tokens,
            "tokens": tokens,
            "bytes": num_bytes,
            "seconds": seconds,
            "positions": fake_positions(tokens, num_bytes, nats),
        }
    _write(directory / "summary.json", _summary(directory, seed, name, stages, weight_bytes, train_seconds))
    identity = {
        "name": name,
        "seed": seed,
        "digest": "ab" * 8,
        "config_hash": "e" * 64,
        "code_hash": code_hash,
        "data_digest": data_digest,
        "world_size": 1,
        "torch": "2.13.0",
        "device": "cpu",
        "python": "3.11.9",
        "platform": "linux",
        "stages": {},
    }
    _write(directory / "run.json", identity)
    _write(directory / "config.json", config or fake_config(seed))
    status = {"state": state, "stage": "score", "digest": "ab" * 8, "error": None}
    _write(directory / "status.json", status)
    events = [*fake_events(seed, steps), *fake_score_events(num_documents, bpb)]
    text = "".join(json.dumps(event) + "\n" for event in events)
    (directory / "metrics.jsonl").write_text(text)
    return directory


def fake_scores(seed: int, bpb: float, num_documents: int) -> dict[str, Any]:
    """Per-document arrays; document sizes do not depend on the seed, difficulties hardly."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    num_bytes = np.maximum(40, shared.lognormal(7.3, 1.1, num_documents)).astype(np.int64)
    tokens = np.maximum(1, num_bytes // 3)
    hardness = shared.normal(1.0, 0.15, num_documents) + own.normal(0.0, 0.01, num_documents)
    nats = hardness * num_bytes
    final = nats * (bpb * math.log(2) * num_bytes.sum() / nats.sum())
    learnt = 0.04 * (1 - np.exp(-num_bytes / 3000)) + own.normal(0.0, 0.004, num_documents)
    post = final / (1 - learnt)
    return {
        "document": np.arange(num_documents),
        "tokens": tokens,
        "bytes": num_bytes,
        "nats_pre_quant": post / 1.012,
        "nats_post_quant": post,
        "nats_final": final,
        "order": np.arange(num_documents),
        "phase": np.arange(num_documents) * 3 // num_documents,
    }


def fake_events(seed: int, steps: int) -> list[dict[str, Any]]:
    """Step and stage events of a short training with the recurrence switch after 35 %."""
    own = np.random.default_rng(seed)
    events: list[dict[str, Any]] = []
    events.append({"event": "stage", "stage": "train", "state": "start", "seconds": 0.0})
    seconds = 0.0
    for step in range(0, steps + 1, max(1, steps // 100)):
        fraction = step / steps
        after = fraction >= 0.35
        seconds += 0.9 if after else 0.6
        events.append(
            {
                "event": "step",
                "step": step,
                "train_loss": 2.2 + 5.0 * math.exp(-4 * fraction) + own.normal(0, 0.03),
                "lr_scale": min(1.0, max(0.1, (1 - fraction) / 0.75)),
                "tokens": step * 4096,
                "seconds": seconds,
                "grad_norm": 1.0,
                "plan": "looped" if after else "plain",
            }
        )
    events.append({"event": "stage", "stage": "train", "state": "done", "seconds": seconds})
    return events


def fake_positions(tokens: int, num_bytes: int, nats: float) -> list[dict[str, float]]:
    """Half of the text up to position 16, the other half after it."""
    half = {"tokens": tokens // 2, "bytes": num_bytes // 2}
    return [{"to": 16, **half, "nats": 0.6 * nats}, {"to": 32, **half, "nats": 0.4 * nats}]


def fake_score_events(num_documents: int, bpb: float) -> list[dict[str, Any]]:
    """A try that was cut off, then four batches of documents, and a global phase after the second."""
    start = {"event": "stage", "stage": "final", "state": "start"}
    events: list[dict[str, Any]] = [start, _scored(0, [0], 9.9, 0.5), start]
    for number, batch in enumerate(np.array_split(np.arange(num_documents), 4)):
        events.append(_scored(number, batch.tolist(), bpb * (1.2 - 0.06 * number), 5.0 * (number + 1)))
        if number == 1:
            span = {"phase": 1, "begin": 10.0, "end": 12.0, "documents": num_documents // 2}
            events.append({"event": "phase", "stage": "final", **span})
    return events


def _scored(number: int, documents: list[int], bpb: float, seconds: float) -> dict[str, Any]:
    figures = {"tokens": 1000 * (number + 1), "bpb_so_far": bpb, "score_seconds": seconds}
    return {"event": "score", "stage": "final", "scored": documents, **figures}


def _summary(
    directory: Path,
    seed: int,
    name: str,
    stages: dict[str, dict[str, float]],
    weight_bytes: int,
    train_seconds: float,
) -> dict[str, Any]:
    taken = {"train_strict": train_seconds + 13.3, "train_as_practised": train_seconds, "score_strict": 39.7}
    limits = {key: {"seconds": one, "limit": 600.0, "within": one <= 600.0} for key, one in taken.items()}
    total_bytes = weight_bytes + 31_002
    return {
        "val_bpb": stages["final"]["val_bpb"],
        "val_loss": stages["final"]["val_loss"],
        "stages": stages,
        "artifact": {
            "weight_bytes": weight_bytes,
            "code_bytes": 31_002,
            "total_bytes": total_bytes,
            "limit_bytes": 16_000_000,
            "margin_bytes": 16_000_000 - total_bytes,
            "fits": total_bytes <= 16_000_000,
        },
        "train": {"steps": 200, "tokens": 819_200, "seconds": train_seconds},
        "limits": limits,
        "model": {"parameters": 411_648},
        "seed": seed,
        "experiment": name,
        "digest": "ab" * 8,
        "baselines": {"unigram": 4.52, "brotli": 2.41, "xz": 2.33, "xz_primed": 2.05},
        "samples": [{"prompt": "Return the", "text": "Return the <value> of & a file."}],
        "audit": {
            "verdict": "pass",
            "checks": [
                {
                    "id": "C1a",
                    "name": "target flip",
                    "verdict": "pass",
                    "probed": 64,
                    "largest": 0.0,
                    "detail": "no earlier score moved",
                }
            ],
        },
        "seconds": {"data": 1.2, "train": train_seconds, "quant": 12.5, "pack": 0.8, "score": 39.6},
        "run_directory": str(directory),
    }


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))

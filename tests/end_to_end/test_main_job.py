"""The main job from documents to a scored artifact, and what reads its directory."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf.files import read_json
from pgolf.report.runs import read_events

from .conftest import STEPS, Ground, only, succeed

FILES = """
.hydra/config.yaml .hydra/overrides.yaml config.json run.json status.json train.log metrics.jsonl
checkpoint/state.pgolf model.safetensors artifact.pgolf code.zip wrapper.py schedules.png scores.npz summary.json
"""
KEYS = """
val_bpb val_loss seed experiment digest model.parameters train.steps train.tokens train.seconds audit.verdict
audit.checks artifact.weight_bytes artifact.code_bytes artifact.total_bytes artifact.limit_bytes artifact.fits
artifact.margin_bytes baselines.unigram baselines.brotli baselines.xz baselines.xz_primed samples seconds run_directory
"""
FILES_OF_READINGS = {"wrapped": "wrapper.py", "shipped": "code.zip"}
STAGES = ("pre_quant", "post_quant", "final")
STAGE_KEYS = ("val_bpb", "val_loss", "tokens", "bytes", "seconds")
COLUMNS = {"document", "tokens", "bytes", "order", "phase", "length_bucket", *(f"nats_{stage}" for stage in STAGES)}


def test_every_file_of_the_contract_is_there(finished: Path) -> None:
    assert [name for name in FILES.split() if not (finished / name).is_file()] == []
    assert list(finished.rglob("*.tmp")) == []
    status = read_json(finished / "status.json")
    assert status["state"] == "done" and status["error"] is None
    identity = read_json(finished / "run.json")
    assert identity["digest"] == status["digest"] and identity["world_size"] == 1
    assert all(entry["start"] <= entry["end"] for entry in identity["stages"].values())
    events, damaged = read_events(finished / "metrics.jsonl")
    assert damaged == [] and events[-1]["event"] == "summary"
    assert [event["step"] for event in events if event["event"] == "step"] == list(range(1, STEPS + 1))


def test_the_summary_has_every_key_and_the_bytes_are_those_on_disk(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    keys = KEYS.split() + [f"stages.{stage}.{key}" for stage in STAGES for key in STAGE_KEYS]
    for key in keys:
        value = summary
        for part in key.split("."):
            assert part in value, key
            value = value[part]
        assert value is not None, key
    artifact = summary["artifact"]
    assert artifact["weight_bytes"] == (finished / "artifact.pgolf").stat().st_size
    code_bytes = {name: (finished / file).stat().st_size for name, file in FILES_OF_READINGS.items()}
    assert code_bytes == {name: one["code_bytes"] for name, one in artifact["readings"].items()}
    assert artifact["reading"] == "wrapped" and artifact["code_bytes"] == code_bytes["wrapped"] < code_bytes["shipped"]
    assert artifact["total_bytes"] == artifact["weight_bytes"] + artifact["code_bytes"]
    assert artifact["fits"] and artifact["margin_bytes"] == 16_000_000 - artifact["total_bytes"]
    assert summary["train"]["steps"] == STEPS and summary["train"]["tokens"] == STEPS * 512
    assert summary["audit"]["verdict"] == "pass"
    assert {check["id"][:2] for check in summary["audit"]["checks"]} >= {"C1", "C2", "C3", "C4"}
    assert len(summary["samples"]) >= 2 and all(sample["prompt"] and sample["text"] for sample in summary["samples"])


def test_the_scores_of_the_documents_add_up_to_the_result(finished: Path, ground: Ground) -> None:
    summary = read_json(finished / "summary.json")
    scores = dict(np.load(finished / "scores.npz"))
    assert set(scores) == COLUMNS
    texts = [path.read_bytes() for path in sorted(ground.texts.iterdir())]
    assert 0 < len(scores["document"]) < len(texts)
    for stage in STAGES:
        found, nats = summary["stages"][stage], math.fsum(scores[f"nats_{stage}"])
        assert found["val_bpb"] == pytest.approx(nats / math.log(2) / scores["bytes"].sum(), rel=1e-12)
        assert found["val_loss"] == pytest.approx(nats / scores["tokens"].sum(), rel=1e-12)
        assert (found["tokens"], found["bytes"]) == (scores["tokens"].sum(), scores["bytes"].sum())
    assert summary["val_bpb"] == summary["stages"]["final"]["val_bpb"]
    assert summary["val_bpb"] != summary["stages"]["post_quant"]["val_bpb"]
    assert set(scores["bytes"].tolist()) <= {len(text) for text in texts}  # original UTF-8 lengths, by another count


def test_the_same_command_again_skips_and_touches_nothing(finished: Path, ground: Ground) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir() if path.is_file() and path.name != ".lock"}
    assert "is finished: val_bpb" in succeed(*ground.job(finished.parent))
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_eval_without_adaptation_gives_the_score_after_quantisation(finished: Path) -> None:
    shown = succeed("eval", f"run={finished}", "ttt=none")
    assert "train  " not in shown
    again = read_json(only(finished, "eval-*") / "summary.json")
    summary = read_json(finished / "summary.json")
    after = summary["stages"]["post_quant"]
    for key in ("tokens", "bytes"):
        assert again["stages"]["final"][key] == after[key]
    assert again["val_bpb"] == pytest.approx(after["val_bpb"], rel=1e-9)  # other rows per forward
    assert again["artifact"]["weight_bytes"] == summary["artifact"]["weight_bytes"] and again["train"] is None
    assert again["artifact"]["code_bytes"] < summary["artifact"]["code_bytes"]  # without the code of the adaptation
    assert again["audit"]["verdict"] == "pass"


def test_compare_report_and_audit_read_the_directory(finished: Path, second: Path, tmp_path: Path) -> None:
    shown = succeed("compare", str(finished), str(second))
    assert f"{read_json(finished / 'summary.json')['val_bpb']:.5f}" in shown
    succeed("report", str(finished), "--out", str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "") and "data:image/png;base64," in page
    moved = tmp_path / "elsewhere"  # a copied directory is the run
    shutil.copytree(finished, moved)
    assert "Validity: pass" in succeed("audit", f"run={moved}")


@pytest.fixture(scope="module")
def second(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in another directory, tracked by nothing and named otherwise."""
    runs = tmp_path_factory.mktemp("second")
    succeed(*ground.job(runs, "name=repeated"))
    return only(runs)


def test_the_same_configuration_gives_the_same_bits_elsewhere(finished: Path, second: Path) -> None:
    for name in ("artifact.pgolf", "model.safetensors"):
        assert (finished / name).read_bytes() == (second / name).read_bytes(), name
    one, other = (read_json(directory / "summary.json") for directory in (finished, second))
    for key in ("val_bpb", "val_loss", "samples", "baselines", "model", "digest"):
        assert one[key] == other[key], key

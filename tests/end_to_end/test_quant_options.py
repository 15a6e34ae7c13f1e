"""Quantisation that reaches into training and calibration, from the command line to the scored artifact."""

import json
from pathlib import Path

from pgolf.files import read_json
from pgolf.quant import container

from .conftest import Ground, only, pgolf, refused, succeed

OPTIONS = (
    "quant/qat=late",
    "quant.qat.below_lr_scale=null",
    "quant.qat.at_fraction=0.5",
    "quant.qat.min_steps=4",
    "quant/rotation=online",
    "quant.rotation.sites=[attn_in,mlp_proj_in]",
    "quant/calibration=self_generated",
    "quant.calibration.sequences=2",
    "quant.min_quantised_elements=1000",
)


def test_rounded_training_rotation_and_text_of_its_own(ground: Ground, tmp_path: Path) -> None:
    shown = succeed(*ground.job(tmp_path, *OPTIONS))
    directory = only(tmp_path)
    summary = read_json(directory / "summary.json")
    assert summary["train"]["rounded_at"] == 4 and summary["audit"]["verdict"] == "pass"
    training = summary["phases"]["training"]
    assert training["generate"] > 0.0
    events = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "qat"]
    assert (event["state"], event["step"], event["steps_left"]) == ("on", 4, 4)
    assert "weights are rounded from step 4 on, with about 4 left" in shown
    stages = summary["stages"]
    assert abs(stages["post_quant"]["val_bpb"] - stages["pre_quant"]["val_bpb"]) < 0.1
    tensors, metadata = container.read(directory / "artifact.pgolf")
    assert metadata["rotation"] == {"kind": "online", "seed": 42}
    marks = {one.name.rsplit(".", 3)[-2]: one.encoded.decoder for one in tensors if one.role == "matrix"}
    assert marks["c_q"] == "rows@attn_in" and marks["fc"] == "rows"
    fewer = pgolf(*ground.job(tmp_path, *OPTIONS, "quant.qat.min_steps=5"))
    refused(fewer, 2, "quant.qat comes on at step 4 and leaves 4 step(s) of 8, fewer than quant.qat.min_steps=5")
    again = succeed("eval", f"run={directory}", "quant/rotation=internal_only", "quant/calibration=random")
    assert "post_quant" in again
    refused(pgolf("eval", f"run={directory}", "quant/qat=none"), 2, "quant.qat (command line): a finished run")


def test_a_ternary_model_comes_back_from_its_artifact_with_any_number_of_processes(
    ground: Ground, tmp_path: Path
) -> None:
    """The published export lost 2.8 bits per byte, and once a score of rank 0's weights alone: here none is lost."""
    ramp = ("quant.qat.from_step=1", "quant.qat.ramp_steps=3", "quant.qat.min_steps=5")
    options = ("quant=ternary_mlp", "quant.min_quantised_elements=1", "train/averaging=last", *ramp, "launch.nproc=2")
    job = [one for one in ground.job(tmp_path, *options) if "calibration_batches" not in one]  # of no use to them
    succeed(*job)
    directory = only(tmp_path)
    stages = read_json(directory / "summary.json")["stages"]
    assert stages["post_quant"]["val_bpb"] == stages["pre_quant"]["val_bpb"]
    tensors, _ = container.read(directory / "artifact.pgolf")
    assert {one.encoded.scheme for one in tensors if ".mlp." in one.name} == {"ternary"}
    few = pgolf(*job, "quant.qat.min_steps=9")
    refused(few, 2, "quant.qat comes on at step 1 and leaves 7 step(s) of 8, fewer than quant.qat.min_steps=9")


def test_bits_by_bigrams_pruned_to_a_size_with_a_temperature(ground: Ground, tmp_path: Path) -> None:
    options = ("quant/allocation=bigram_guided", "quant/temperature=fitted", "quant.temperature.tokens=1000")
    shown = succeed(*ground.job(tmp_path, *options, "quant.min_quantised_elements=1000"))
    directory = only(tmp_path)
    tensors, metadata = container.read(directory / "artifact.pgolf")
    assert {"gptq int5", "gptq int6", "gptq int7"} <= {one.encoded.scheme for one in tensors}
    assert 0.9 <= metadata["temperature"] <= 1.1 and "quant.temperature: " in shown
    size = (directory / "artifact.pgolf").stat().st_size
    prune = ("quant/pruning=selective", f"quant.pruning.target_bytes={size - 200}", "quant/allocation=none")
    shown = succeed("eval", f"run={directory}", *prune, "quant/temperature=none")
    assert "symbols of 1 are pruned" in shown or "without any symbol of 1 do not fit" in shown

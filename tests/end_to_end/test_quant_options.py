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
    assert training["generate"] > 10 * training["calibrate"]
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

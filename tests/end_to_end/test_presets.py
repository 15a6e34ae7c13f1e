"""Every preset composes with its published size; every family trains, packs and scores at mini scale."""

from pathlib import Path

import pytest
import torch

from pgolf.app import build
from pgolf.app.check import problems_of
from pgolf.report.catalogue import Proposal, load_catalogue
from pgolf.report.presets import preset_directory, read_presets
from tests.shipped import job

from .conftest import TINY, Ground, only, succeed

PRESETS = sorted(read_presets(preset_directory()))
LAPTOP = ["scale=mini", "data=pydocs", "train.max_steps=2"]
FAMILIES = {
    "naive": [],
    "pr1493": [],
    "pr1736": ["data/transform=caseops"],
    "pr2135": ["data/transform=caseops", "quant.matrix.bits=5"],
    "pr2059_all": [],
    "pr2059_e2e": [],
}
UNCALIBRATED = {"naive", "pr2059_all", "pr2059_e2e"}  # quant=baseline reads no calibration text


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_right_and_has_the_published_size(name: str) -> None:
    """The dry build makes every part, the model and its optimisers on the meta device."""
    record = load_catalogue().published(name)
    full = job(f"experiment={name}")
    assert problems_of(full) == []
    with torch.device("meta"):
        vocab_size = build.build(full.config["data"], "data").vocab_size
        model = build.build(full.config["model"], "model")(vocab_size, 42)
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters
    assert full.config["name"] == name and full.config["data"]["_target_"].endswith("PublishedData")
    seconds = (4 * 3600, 4 * 3600) if isinstance(record, Proposal) else (587, 600)
    assert full.config["train"]["max_steps"] is None and seconds[0] <= full.config["train"]["max_seconds"] <= seconds[1]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_right_on_a_laptop_and_with_other_parts(name: str) -> None:
    chosen = job(f"experiment={name}", *LAPTOP)
    assert problems_of(chosen) == []
    assert chosen.config["model"]["dim"] == 96 and chosen.config["train"]["max_seconds"] is None
    if "context_tokens" in chosen.config["ttt"]:
        assert chosen.config["ttt"]["context_tokens"] == chosen.config["train"]["sequence_tokens"] == 256
    other = job(f"experiment={name}", *LAPTOP, "ttt=none", "quant=int8")
    assert problems_of(other) == []
    assert other.config["ttt"]["_target_"].endswith(".Chunked") and "lora" not in other.config["ttt"]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_from_training_to_the_audit(name: str, ground: Ground, tmp_path: Path) -> None:
    without = ("ttt.", "train.max_steps", *(["quant.calibration_batches"] if name in UNCALIBRATED else []))
    sizes = [one for one in TINY if not one.startswith(without)]
    places = [f"data.source.paths=[{ground.texts}]", f"paths.data={ground.data}", f"paths.runs={tmp_path}"]
    words = [f"experiment={name}", *LAPTOP, *sizes, *places, "train.max_steps=2", *FAMILIES[name]]
    shown = succeed(*(word for word in words if word != "data=pydocs"))
    assert "Validity: pass" in shown
    assert only(tmp_path).name.startswith(f"{name}-")

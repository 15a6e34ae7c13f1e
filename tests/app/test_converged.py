"""`pgolf inspect run=DIR --converged`: what is printed, pasted into a command line, starts where the run ended."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pgolf.app.build import build
from pgolf.app.verbs import inspect
from pgolf.errors import ConfigError, UserError
from pgolf.train.weights import save
from tests.shipped import job


def model_of(*overrides: str) -> tuple[dict[str, Any], Any]:
    """The configuration and the model of a command line at mini scale."""
    chosen = job(*overrides)
    assert not chosen.refusals
    return chosen.config, build(chosen.config["model"], "model")(300, 7)


def trained(directory: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """A run directory as it is after training, with gains that moved; gives the weights."""
    config, model = model_of(*overrides)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    weights = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save(directory / "model.safetensors", weights)
    return weights


def printed(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The overrides that the verb prints."""
    assert inspect.main([f"run={directory}", "--converged"]) == 0
    return re.findall(r"^  (model\S+=\S+)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("bare", [(), ("model/without_attention=first", "model.qk_gain=[1.0,2.0,3.0,4.0]")])
def test_gains_go_round(bare, tmp_path, capsys):
    weights = trained(tmp_path / "run", *bare)
    (override,) = printed(tmp_path / "run", capsys)
    _, model = model_of(*bare, override)
    for layer, block in enumerate(model.blocks):
        if block.attn is not None:
            mean = weights[f"blocks.{layer}.attn.q_gain"].mean()
            torch.testing.assert_close(block.attn.q_gain.detach(), mean.expand(len(block.attn.q_gain)))
    assert not bare or override.startswith("model.qk_gain=[1,")  # the layer without attention keeps its own


def test_bounded_gains_come_back_as_gains(tmp_path, capsys):
    weights = trained(tmp_path / "run", "model/query_gain=bounded")
    (override,) = printed(tmp_path / "run", capsys)
    _, model = model_of("model/query_gain=bounded", override)
    for layer, block in enumerate(model.blocks):
        mean = (10.0 * torch.sigmoid(weights[f"blocks.{layer}.attn.q_gain.raw"])).mean()
        torch.testing.assert_close(block.attn.gains.detach(), mean.expand(len(block.attn.gains)))


@pytest.mark.parametrize("kind", ["blend", "cross_layer"])
def test_a_learned_blend_comes_back_as_constants(kind, tmp_path, capsys):
    weights = trained(tmp_path / "run", f"model/recurrence={kind}")
    _, model = model_of(*printed(tmp_path / "run", capsys))
    assert not any(name.startswith("recurrence.") for name in model.state_dict())
    table = weights["recurrence.recur_alpha" if kind == "blend" else "recurrence.carry_alpha"]
    torch.testing.assert_close(torch.tensor(model.recurrence.alpha), table)
    if kind == "cross_layer":
        torch.testing.assert_close(torch.tensor(model.recurrence.beta), weights["recurrence.carry_beta"])


def test_every_gain_and_gate_is_listed_by_layer(tmp_path, capsys):
    weights = trained(tmp_path / "run", "model/attention/gate=sparse")
    assert inspect.main([f"run={tmp_path / 'run'}", "--converged"]) == 0
    told = capsys.readouterr().out
    assert "attn.gate.attn_gate_w" in told and "resid_mix" in told and "skip_weights" in told
    assert f"{float(weights['blocks.2.mlp_scale'].mean()):.6g}" in told


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--converged"], ConfigError, "belong together"),
        (["run=nowhere"], ConfigError, "belong together"),
        (["run=nowhere", "--converged"], UserError, "run=nowhere has no config.json"),
        (["run=nowhere", "seed=1", "--converged"], ConfigError, "seed=1: run=DIR --converged reads"),
    ],
)
def test_what_cannot_be_shown_is_said(words, error, message):
    with pytest.raises(error, match=message):
        inspect.main(words)

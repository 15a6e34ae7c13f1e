"""Reading the configuration of a reference case: what it asks for is built, or refused by name."""

import numpy as np
import pytest
import torch

from pgolf.interop.parity.build import build_model
from pgolf.interop.parity.case import Case, Unsupported
from pgolf.interop.parity.models import model_case
from pgolf.interop.published import from_published, to_published
from pgolf.model.exclude import OwnValue
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.head import UntiedHead
from pgolf.model.lanes import ParallelResidual, TwoLane
from pgolf.model.rope import Rotary

BASE = {
    "vocab_size": 40,
    "model_dim": 16,
    "num_layers": 4,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_mult": 2.0,
    "rope_dims": 4,
    "rope_base": 10000.0,
    "loop_start": 1,
    "loop_end": 2,
    "num_loops": 1,
    "xsa_last_n": 4,
    "train_seq_len": 32,
    "eval_seq_len": 32,
    "skip_gates_enabled": True,
    "ln_scale": True,
    "tie_embeddings": True,
    "logit_softcap": 30.0,
    "rope_yarn": False,
}
LAMBDAS = {
    "parallel_post_lambdas": np.ones((4, 2, 2), np.float32),
    "parallel_resid_lambdas": np.ones((4, 2), np.float32),
}


def build(monkeypatch, script="1736", parameters=(), **config):
    """The model of a configuration; its weights are not loaded."""
    monkeypatch.setattr("pgolf.interop.parity.build._load", lambda model, parameters: None)
    return build_model(script, {**BASE, **config}, dict(parameters))


def test_parts_follow_the_settings(monkeypatch):
    model = build(monkeypatch, xsa_last_n=1, gate_window=8, attn_out_gate_enabled=True, attn_out_gate_src="q")
    assert [isinstance(block.attn.exclude, OwnValue) for block in model.blocks] == [False, False, False, True]
    gate = model.blocks[0].attn.gate
    assert isinstance(gate, AttentionOutGate) and (gate.width, gate.source) == (8, "q")
    model = build(monkeypatch, sparse_attn_gate_enabled=True, sparse_attn_gate_scale=0.5, tie_embeddings=False)
    gate = model.blocks[0].attn.gate
    assert isinstance(gate, HeadGate) and (gate.width, gate.scale) == (12, 0.5)
    assert isinstance(model.head, UntiedHead)
    assert build(monkeypatch, skip_gates_enabled=False).gated_skips is False
    assert build(monkeypatch, rope_yarn=True).blocks[0].attn.rope.train_tokens == 32


def test_wirings_follow_settings_and_parameters(monkeypatch):
    two = build(monkeypatch, parameters=LAMBDAS, parallel_start_layer=2, parallel_final_lane="mlp").lanes
    assert isinstance(two, TwoLane) and (two.start_layer, two.final_lane) == (2, "mlp")
    for start in (0, 4):
        assert build(monkeypatch, parameters=LAMBDAS, parallel_start_layer=start).lanes is None
    assert isinstance(build(monkeypatch, script="1493", parallel_residual_start=3).lanes, ParallelResidual)


@pytest.mark.parametrize(
    ("script", "bos_id"), [("1667", None), ("1736", None), ("1855", 1), ("1868", 1), ("2135", None)]
)
def test_the_smear_gate_stops_where_its_script_does(monkeypatch, script, bos_id):
    assert build(monkeypatch, script=script, smear_gate_enabled=True).smear.bos_id == bos_id
    assert build(monkeypatch, script=script, smear_gate_enabled=True, smear_bos_fix=True).smear.bos_id == 1


def test_what_is_not_known_is_refused_by_name(monkeypatch):
    with pytest.raises(Unsupported, match="not known: wormhole"):
        build(monkeypatch, wormhole=3)
    with pytest.raises(Unsupported, match="embedding_dim=8"):
        build(monkeypatch, embedding_dim=8)
    with pytest.raises(Unsupported, match="more than one gate"):
        build(monkeypatch, gated_attn_enabled=True, sparse_attn_gate_enabled=True)
    with pytest.raises(Unsupported, match="does not say vocab_size"):
        build_model("1736", {key: value for key, value in BASE.items() if key != "vocab_size"}, {})


@pytest.mark.parametrize(("history", "passes"), [("each row", True), ("longest row", True), ("neither", False)])
def test_rotary_tables_may_be_kept_from_the_longest_row_or_not(history, passes):
    """A script that stretches its rotary base gives a short row other losses after a long one; both are parity."""
    config = {**BASE, "rope_yarn": True, "train_seq_len": 8}
    model = build_model("1736", config, _parameters(config))
    generator = np.random.default_rng(0)
    long, short = generator.integers(1, 40, 33), generator.integers(1, 40, (2, 17))
    arrays = {"varlen_x": long[:-1], "varlen_y": long[1:], "plain_x": short[:, :-1], "plain_y": short[:, 1:]}
    arrays |= {f"cu_seqlens_{cut}": np.array([0, 32], np.int32) for cut in ("split", "nosplit")}
    if history != "each row":
        tokens = {"longest row": 32, "neither": 24}[history]
        kept = Rotary(dims=4, base=model.blocks[0].attn.rope.base_for(tokens))
        for block in model.blocks:
            block.attn.rope = kept
    inputs, targets = (torch.from_numpy(arrays[key].copy()) for key in ("plain_x", "plain_y"))
    with torch.no_grad():
        logits = model.logits(model(inputs)).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
    arrays["plain_noloop_ptl"] = losses.view(2, 16).numpy()
    arrays |= {f"p/{name}": value for name, value in _parameters(config).items()}
    case = Case("case", "model_", None, arrays, {"script": "1736", "config": config, "rope_cache": "as it comes"})
    outcome = model_case(case)
    assert outcome.passed == passes
    if passes:
        assert history in outcome.remarks[0] and "as it comes" in outcome.remarks[0]


def _parameters(config):
    """Random weights under their published names."""
    with pytest.MonkeyPatch.context() as patch:
        model = build(patch, **config)
    generator = np.random.default_rng(1)
    return {
        to_published(name): generator.normal(0, 0.3, tuple(value.shape)).astype(np.float32)
        for name, value in model.state_dict().items()
    }


def test_published_names():
    names = {
        "smear.smear_gate.weight": "smear_gate.weight",
        "smear.smear_lambda": "smear_lambda",
        "lanes.parallel_post_lambdas": "parallel_post_lambdas",
        "softcap.softcap_pos": "softcap_pos",
        "head.weight": "lm_head.weight",
        "blocks.3.attn.gate.attn_gate_w": "blocks.3.attn.attn_gate_w",
        "blocks.3.attn.gate.attn_gate_proj.weight": "blocks.3.attn.attn_gate_proj.weight",
        "blocks.10.mlp.fc.weight": "blocks.10.mlp.fc.weight",
    }
    assert {name: to_published(name) for name in names} == names
    state = {published: torch.zeros(1) for published in names.values()}
    assert set(from_published(state)) == set(names)

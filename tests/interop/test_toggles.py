"""Every setting of the published scripts, in random combinations, against the forward pass written out."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pgolf.interop.parity.case import Case
from pgolf.interop.parity.models import adapted_forward, model_case

from .written_out import Config, WrittenOut, halves, random_adapters, random_weights

BOUNDARIES = np.array([0, 13, 13, 29, 40, 40], np.int32)  # with an empty document
LONG, SHORT = 40, 20
STOPPING = ("1851", "1855")


def random_config(pick: random.Random) -> tuple[str, dict[str, Any]]:
    """A script and settings for it."""
    groups, head_dim, layers = pick.choice([1, 2, 4]), pick.choice([4, 6, 8, 16]), pick.randint(1, 7)
    heads = groups * pick.choice([1, 2, 4])
    config: dict[str, Any] = {
        "vocab_size": pick.choice([60, 130]),
        "model_dim": max(heads, 2) * head_dim,
        "num_layers": layers,
        "num_heads": max(heads, 2),
        "num_kv_heads": groups,
        "mlp_mult": pick.choice([2, 3.0, 1.5, 2.6]),
        "rope_base": pick.choice([1e4, 5e3]),
        "tie_embeddings": pick.random() < 0.7,
        "logit_softcap": pick.choice([30.0, 5.0]),
    }
    family = pick.choice(["naive", "1493", "banks", "banks", "banks"])
    if family == "naive":
        return family, config
    start = pick.randint(0, layers - 1)
    config |= {
        "rope_dims": pick.choice([0, 4]),
        "loop_start": start,
        "loop_end": pick.randint(start, layers - 1),
        "num_loops": pick.randint(0, 3),
        "xsa_last_n": pick.randint(0, layers + 1),
        "train_seq_len": pick.choice([16, 64]),
        "eval_seq_len": 64,
        "skip_gates_enabled": pick.random() < 0.6,
        "ln_scale": pick.random() < 0.6,
        "rope_yarn": pick.random() < 0.3,
    }
    if family == "1493":
        return family, config | {"parallel_residual_start": pick.randint(-1, layers + 1)}
    return pick.choice(["1530", "1667", "1736", "1787", *STOPPING]), config | _banks(pick, config)


def _banks(pick: random.Random, config: Config) -> dict[str, Any]:
    gates = ("attn_out_gate_enabled", "gated_attn_enabled", "sparse_attn_gate_enabled")
    chosen = pick.choice([None, *gates])
    found = {
        "parallel_start_layer": pick.randint(0, config["num_layers"] + 1),
        "parallel_final_lane": pick.choice(["mean", "attn", "mlp"]),
        "gate_window": pick.choice([3, min(12, config["model_dim"])]),
        **{gate: gate == chosen for gate in gates},
        "attn_out_gate_src": pick.choice(["proj", "q"]),
        "sparse_attn_gate_scale": pick.choice([0.5, 1.0]),
        "smear_gate_enabled": pick.random() < 0.5,
        "gated_xsa_enabled": bool(config["xsa_last_n"]) and pick.random() < 0.3,
        "asym_logit_rescale": pick.random() < 0.3,
    }
    return found | ({"mlp_leaky_slope": 0.3} if pick.random() < 0.3 else {})


def losses(model: WrittenOut, x: torch.Tensor, y: torch.Tensor, looped: bool, documents: Any, capped: str = "score"):
    """Per-token losses [B, T]."""
    logits = model.logits(x, looped, documents, capped)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    """Zero for what is not read, or whose result is lost."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)


def recorded(config: Config, model: WrittenOut, generator: torch.Generator) -> dict[str, np.ndarray]:
    """What a reference case of the kind model_ holds."""
    x, y = torch.randint(0, 60, (2, LONG), generator=generator)
    x[[0, 13]] = 1
    rows_x, rows_y = torch.randint(0, 60, (2, 3, SHORT), generator=generator)
    rows_x[0, 5] = 1
    documents = torch.bucketize(torch.arange(LONG), torch.from_numpy(BOUNDARIES[1:]), right=True)
    arrays = {"varlen_x": x, "varlen_y": y, "plain_x": rows_x, "plain_y": rows_y}
    for suffix, looped in (("noloop", False), ("loop", True)):
        packed = (x[None], y[None], looped, documents)
        arrays[f"varlen_split_{suffix}_ptl"] = losses(model, *packed)[0].detach()
        trained = losses(model, *packed, capped="train").mean()
        arrays[f"varlen_split_{suffix}_mean"] = trained.detach()
        arrays[f"varlen_split_{suffix}_logits_first4"] = model.logits(x[None], looped, documents)[0, :4].detach()
        arrays[f"plain_{suffix}_ptl"] = losses(model, rows_x, rows_y, looped, None).detach()
    trained.backward()
    for name, weight in model.weights.items():
        arrays[f"p/{name}"] = weight.detach()
        arrays[f"g/{name}"] = gradient(weight)
    found = {name: value.numpy() for name, value in arrays.items()}
    return found | {"cu_seqlens_split": BOUNDARIES, "cu_seqlens_nosplit": BOUNDARIES}


def adapted(config: Config, model: WrittenOut, generator: torch.Generator) -> dict[str, np.ndarray]:
    """What a reference case of the kind ttt_forward_ holds; alpha is 5 and the rank 2."""
    x, y = torch.randint(0, 60, (2, 3, SHORT), generator=generator)
    arrays = {"x": x, "y": y, **{f"p/{name}": weight.detach() for name, weight in model.weights.items()}}
    model.adapter_scale = 5.0 / 2
    for suffix, looped in (("noloop", False), ("loop", True)):
        adapters = random_adapters(config, looped, rows=3, rank=2, generator=generator)
        model.adapters = {name: value.requires_grad_() for name, value in adapters.items()}
        found = losses(model, x, y, looped, None)
        found.mean(dim=1).sum().backward()
        arrays[f"ptl_{suffix}"] = found.detach()
        for name, value in adapters.items():
            arrays[f"lora_{suffix}/{name}"], arrays[f"lora_{suffix}_grad/{name}"] = value.detach(), gradient(value)
    model.adapters = {}
    return {name: value.numpy() for name, value in arrays.items()}


@pytest.mark.parametrize("seed", [*range(28), 43, 100])  # the last two lose a pass that follows the lanes
def test_any_settings_give_the_published_forward_pass(seed):
    script, config = random_config(random.Random(seed))
    generator = torch.Generator().manual_seed(seed)
    weights = {name: weight.requires_grad_() for name, weight in random_weights(config, generator).items()}
    model = WrittenOut(config, weights, smear_stops=script in STOPPING)
    meta = {"script": script, "config": config, "alpha": 5.0}
    outcome = model_case(Case("case", "model_", None, recorded(config, model, generator), meta))
    assert outcome.passed, (script, config, outcome)
    outcome = adapted_forward(Case("case", "ttt_forward_", None, adapted(config, model, generator), meta))
    assert outcome.passed, (script, config, outcome)


def test_the_settings_that_are_drawn_reach_every_part():
    drawn = [random_config(random.Random(seed)) for seed in range(30)]
    for key in ("attn_out_gate_enabled", "gated_attn_enabled", "sparse_attn_gate_enabled", "smear_gate_enabled"):
        assert any(config.get(key) for _, config in drawn), key
    for key in ("gated_xsa_enabled", "asym_logit_rescale", "rope_yarn"):
        assert any(config.get(key) for _, config in drawn), key
    assert {config.get("parallel_final_lane") for _, config in drawn} == {None, "mean", "attn", "mlp"}
    assert any(config["attn_out_gate_src"] == "q" for _, config in drawn if config.get("attn_out_gate_enabled"))
    assert any(not config["tie_embeddings"] for _, config in drawn)
    assert {"naive", "1493"} < {script for script, _ in drawn}
    lengths = {sum(map(len, halves(config, looped=True))) for _, config in drawn}
    assert {length % 2 for length in lengths} == {0, 1}

"""Whole trainings: what is known is trained, the rest is refused by name; what differs is found."""

from dataclasses import replace

import pytest

from pgolf.interop.parity import pipeline, train
from pgolf.interop.parity.case import Case, Unsupported
from pgolf.interop.parity.train_recipe import recipe_of
from pgolf.interop.published import to_published
from pgolf.optim.schedule import Position
from tests.support import GOLDEN

FP32 = "train_1855_fp32muon"


@pytest.fixture(scope="module")
def recorded():
    """The first two steps of a recorded training: fast, and before recurrence."""
    path = GOLDEN / f"{FP32}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    case = Case.load(path, "train_")
    names = ("micro_losses", "grad_norm_before_clip")
    arrays = {name: value for name, value in case.arrays.items() if "final" not in name}
    arrays |= {name: case.arrays[name][:2] for name in names}
    meta = {key: value for key, value in case.meta.items() if key != "final_val"}
    return changed(
        replace(case, arrays=arrays, meta=meta), {"iterations": 2, "warmdown_frac": 0.0, "enable_looping_at": 1.0}
    )


def changed(case, settings=None, config=None, arrays=None, **meta):
    meta = {**case.meta, **meta}
    meta["train"] = {**meta["train"], **(settings or {})}
    meta["config"] = {**meta["config"], **(config or {})}
    return replace(case, meta=meta, arrays={**case.arrays, **(arrays or {})})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"script": "naive"}, "script naive"),
        ({"script": "9999"}, "script 9999"),
        ({"muon_precision": "fp64"}, "muon_precision=fp64"),
        ({"settings": {"max_wallclock_seconds": 600}}, "max_wallclock_seconds=600"),
        ({"settings": {"train_seq_schedule": "1024@0.1"}}, "not known: train_seq_schedule"),
        ({"config": {"asym_logit_rescale": True}}, "asym_logit_rescale"),
        ({"config": {"tie_embeddings": False}}, "untied head"),
    ],
)
def test_what_is_not_known_is_refused_by_name(recorded, changes, message):
    with pytest.raises(Unsupported, match=message):
        recipe_of(changed(recorded, **changes))


def test_settings_reach_the_parts(recorded):
    settings = {"warmdown_frac": 0.5, "iterations": 10, "ema_decay": 0.5, "grad_clip_norm": 0.0, "beta2": 0.7}
    settings |= {"muon_momentum_warmup_steps": 0, "enable_looping_at": 1.5, "muon_backend_steps": 9}
    taper = {"wd_taper_start_frac": 0.5, "wd_taper_final_mult": 0.0}
    recipe = recipe_of(changed(recorded, {**settings, **taper, "world_size": 2, "rank": 1}))
    trainer = recipe.trainer
    assert (recipe.world_size, recipe.rank) == (2, 1)
    assert (trainer.batch_tokens, trainer.micro_batch_tokens) == (128, 64)
    assert trainer.clip.norm == float("inf") and trainer.loop_at == 1.0
    assert trainer.momentum.at(Position(0, 0.0)) == 0.97
    assert trainer.schedule.at(Position(9, 0.9)) == pytest.approx(0.2)
    assert trainer.weight_decay.at(Position(9, 0.75)) == pytest.approx(0.5)
    model = train.build_model("1855", recorded.meta["config"], recorded.below("p/"))
    rows = {to_published(row["name"]): row for row in recipe.optimizers(model).table()}
    assert rows["blocks.0.attn.attn_gate_w"]["group"] == "gate" and rows["smear_lambda"]["betas"] == (0.9, 0.7)
    assert rows["blocks.0.mlp.fc.weight"]["newton_schulz_steps"] == 5


def test_two_steps(recorded):
    short = {"per_step": recorded.meta["per_step"][:2], "param_norms_per_step": recorded.meta["param_norms_per_step"]}
    short["per_step"] = [{**row, "lr": [0.03, 0.026, 0.02]} for row in short["per_step"]]
    outcome = train.training(changed(recorded, **short))
    assert outcome.passed and outcome.tolerance == 1e-4, outcome


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"muon_wd": 0.5}}, "after_step0/blocks.0.attn.c_q.weight"),
        ({"settings": {"beta1": 0.5}}, "after step 1"),
        ({"settings": {"muon_momentum": 0.5}}, "momentum of step 1"),
        ({"settings": {"adam_eps": 1.0}}, "after_step0/skip_weights"),
        ({"settings": {"enable_looping_at": 0.0}}, "recurrence in step 0"),
    ],
)
def test_another_recipe_differs(recorded, changes, message):
    outcome = train.training(changed(recorded, **changes))
    assert not outcome.passed and any(message in remark for remark in outcome.remarks)


def test_the_average_is_what_is_quantised(recorded, monkeypatch):
    case, seen = Case.load(GOLDEN / f"{FP32}.npz", "train_"), {}

    def quantisation(case, found, model, trained_here):
        weights = {to_published(name): value for name, value in model.state_dict().items()}
        for name, expected in case.below("ema_final/").items():
            found.near(name, weights[name].reshape(expected.shape), expected, 1e-4)
        seen["names"], seen["trained_here"] = set(weights), trained_here

    monkeypatch.setattr(pipeline, "quantisation", quantisation)
    outcome = train.training(replace(case, meta={**case.meta, "quant": {}}))
    assert outcome.passed and seen["trained_here"] and "tok_emb.weight" in seen["names"]


def test_quantisation_of_what_was_trained(recorded):
    clips = {f"{kind}_clip_sigmas": 12.0 for kind in ("matrix", "embed", "mlp", "attn")}
    quant = {"matrix_bits": 6, "embed_bits": 8, "gptq_calibration_batches": 2, **clips}
    case = changed(recorded, quant=quant, quant_meta={}, hessian_keys=["tok_emb.weight"])
    outcome = train.training(case)
    assert not outcome.passed and any("names of Hessians" in remark for remark in outcome.remarks)
    with pytest.raises(Unsupported, match="not known: awq_lite_enabled"):
        train.training(changed(case, quant={**quant, "awq_lite_enabled": True}))

"""A key that nothing reads is refused, whoever set it: on an absent part, or without effect beside other settings."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from pgolf.app.check import advice, require_valid
from pgolf.app.cli import application
from pgolf.app.compose import composer
from pgolf.app.unread import replaced_by_scale, unread
from pgolf.errors import ConfigError
from tests import shipped


def told(*overrides: str, multirun: bool = False, extra: Path | None = None) -> list[str]:
    """What is said of a command line."""
    with nullcontext(shipped.made()) if extra is None else composer(str(extra)) as one:
        jobs = one.jobs(list(overrides), multirun)
        assert not any(job.refusals for job in jobs)
        return unread(jobs)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["+train.early_stop.reference=/x"],
            "train.early_stop.reference (command line): train.early_stop is absent, so nothing reads it. "
            "Choose a part with train/early_stop=behind_reference",
        ),
        (["model/lanes=none", "++model.lanes.start_layer=2"], "model.lanes.start_layer (command line): model.lanes is"),
        (["model.depth.num_loops=0", "train.loop_at=0.5"], "train.loop_at (command line) changes nothing: every plan"),
        (["model.depth.num_loops=0", "model.depth.loop_end=2"], "model.depth.loop_end (command line) changes nothing"),
        (["optim.head.lr=0.5"], "optim.head.lr (command line) changes nothing: this model has no parameters of the"),
        (["optim.gate.lr=0.5"], "no parameters of the role gate"),
        (["train.holdout_batches=3"], "see several_decays"),
        (["quant=int8", "quant.calibration_batches=3"], "no scheme of quant asks for what the model reads"),
        (["ttt.phases=0", "ttt.sgd.lr=0.1"], "ttt.sgd.lr (command line) changes nothing: ttt.phases=0"),
        (["train.momentum.end=0.8", "optim.matrix.momentum=0.9"], "train.momentum sets it in every step, at last to"),
    ],
)
def test_a_key_without_effect_is_named_with_its_reason(overrides, sentence):
    (found,) = told(*overrides)
    assert sentence in found


def test_keys_with_an_effect_are_not():
    overrides = ["model/attention/gate=sparse", "optim.gate.lr=0.5", "model/head=untied", "optim.head.lr=0.1"]
    overrides += ["train/averaging=several_decays", "train.holdout_batches=3", "quant.calibration_batches=3"]
    overrides += ["train.loop_at=0.5", "model.depth.loop_start=1", "optim.matrix.momentum=0.9", "ttt.sgd.lr=0.1"]
    assert told(*overrides) == []


def test_in_a_sweep_a_key_may_be_for_some_jobs():
    assert told("model.depth.num_loops=0,1", "train.loop_at=0.5", multirun=True) == []
    (found,) = told("ttt=none,lora", "optim.gate.lr=0.5", multirun=True)
    assert found.startswith("optim.gate.lr")


def experiment(folder: Path, name: str, text: str) -> Path:
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("# @package _global_\n" + text)
    return folder


def test_an_experiment_cannot_set_what_it_leaves_absent(tmp_path):
    experiment(tmp_path, "mine", "model:\n  lanes:\n    start_layer: 2\n")
    (found,) = told("experiment=mine", extra=tmp_path)
    assert found.startswith("model.lanes.start_layer (") and "mine.yaml:4): model.lanes is absent" in found
    experiment(
        tmp_path, "other", "defaults:\n  - override /model/lanes: two_lane\nmodel:\n  lanes:\n    start_layer: 2\n"
    )
    assert told("experiment=other", extra=tmp_path) == []
    assert (
        told("experiment=other", "model/lanes=none", extra=tmp_path) == []
    )  # taken away on purpose, with its settings


def test_what_the_sizes_replace_is_said(tmp_path):
    experiment(tmp_path, "mine", "model:\n  dim: 128\n  qk_gain: 3.0\n")
    with composer(str(tmp_path)) as made:
        (shrunk,) = made.jobs(["experiment=mine"], False)
        (typed,) = made.jobs(["experiment=mine", "model.dim=64"], False)
        (full,) = made.jobs(["experiment=mine", "scale=full"], False)
    assert replaced_by_scale(shrunk) == (
        "the sizes of the scale take the place of what the experiment sets: model.dim (128 -> 96)"
    )
    assert replaced_by_scale(typed) is None and replaced_by_scale(full) is None


def test_a_reference_that_is_no_run_is_refused_before_any_work(tmp_path):
    words = [
        "train/early_stop=behind_reference",
        f"train.early_stop.reference={tmp_path}",
        f"paths.data={tmp_path / 'd'}",
    ]
    with pytest.raises(ConfigError, match=r"train.early_stop.reference=.* has no metrics.jsonl"):
        application(words)
    assert not (tmp_path / "d").exists()


def test_the_part_of_another_group_is_named():
    job = shipped.job("seed=1")
    assert advice(job, "model.mup") == "Choose a part with optim/mup=width, which model.mup follows"
    assert advice(job, "model.lanes").startswith("Choose a part with model/lanes=exchanging|")


def test_the_command_line_is_refused():
    jobs = [shipped.job("+train.early_stop.reference=/x")]
    with pytest.raises(ConfigError, match="train.early_stop is absent, so nothing reads it"):
        require_valid(jobs)
    require_valid(jobs, all_read=False)

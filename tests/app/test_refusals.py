"""Every wrong configuration gets a sentence: the key, its origin, what would be right."""

from pathlib import Path

import pytest

from pgolf.app.check import problems_of, require_valid
from pgolf.app.compose import composer, config_directory
from pgolf.errors import ConfigError


def problems(conf: Path, *overrides: str, multirun: bool = False, extra: Path | None = None) -> list[str]:
    """The problems of a command line; an empty list when it is right."""
    with composer(str(extra) if extra else None, conf) as made:
        jobs = made.jobs(list(overrides), multirun)
    try:
        require_valid(jobs)
    except ConfigError as error:
        return error.problems
    return []


def only(found: list[str]) -> str:
    """The single problem."""
    assert len(found) == 1, found
    return found[0]


def test_the_configuration_itself_is_right(conf: Path) -> None:
    assert problems(conf) == []
    assert problems(conf, "experiment=big", "model/attention/gate=sparse", "ttt=none") == []


def test_a_typo_in_a_group_file_names_file_line_and_nearest(conf: Path) -> None:
    path = conf / "optim" / "tiny.yaml"
    path.write_text(path.read_text().replace("  lr: 0.02", "  lrr: 0.02"))
    unknown, missing = problems(conf)
    assert unknown.startswith("optim.matrix.lrr = 0.02")
    assert "optim/tiny.yaml:5)" in unknown and "did you mean 'lr'?" in unknown
    assert missing.startswith("optim.matrix.lr is missing") and "a number" in missing


def test_a_typo_in_an_experiment_file(conf: Path) -> None:
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  qk_gian: 5.25\noptimm:\n  lr: 1\n")
    root, key = problems(conf, "experiment=mine")
    assert "experiment/mine.yaml:5)" in root and "no 'optimm'; did you mean 'optim'?" in root
    assert "experiment/mine.yaml:3)" in key and "'qk_gain'" in key


def test_a_typo_in_the_users_own_config_directory(conf: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  dmi: 8\n")
    found = only(problems(conf, "experiment=mine", extra=tmp_path / "own"))
    assert "experiment/mine.yaml:3)" in found and "'dim'" in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dmi=3", "did you mean 'model.dim'?"),
        ("modle.dim=3", "did you mean 'model.dim'?"),
        ("model.num_heads=3", "did you mean 'model.attention.num_heads'?"),
        ("+model.foo=1", "pgolf.fakes.Model has no 'foo'"),
        ("+modle.dim=3", "did you mean 'model'?"),
        ("+model.vocab_size=3", "gets 'vocab_size' at run time"),
        ("model.qk_gain=3", "Write +model.qk_gain=3"),
        ("model.attention.gate.width=3", "Choose a part with model/attention/gate=sparse"),
        ("ttt=phasd", "did you mean 'phased'? Options of ttt: none, phased"),
        ("modle=tiny", "did you mean 'model'?"),
        ("model/attentoin=plain", "did you mean 'model.attention'?"),
        ("nonsense/group=plain", "there is no 'nonsense/group'"),
        ("model.dim=[1", "no viable alternative"),
        ("seed=1,2", "several values are a sweep; add --multirun"),
        ("~model.nothing", "there is no 'model.nothing'"),
    ],
)
def test_a_wrong_name_on_the_command_line(conf: Path, override: str, expected: str) -> None:
    found = only(problems(conf, override))
    assert expected in found
    assert "(command line)" in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.dim=wide", "a whole number"),
        ("model.dim=1.5", "a whole number"),
        ("model.dim=true", "a whole number"),
        ("model.dim=null", "a whole number"),
        ("model.tie=1", "true or false"),
        ("optim.matrix.lr=fast", "a number"),
        ("optim.matrix.lr=nan", "not a number"),
        ("optim.matrix.betas=[0.9,nan]", "not a number"),
        ("optim.matrix.betas=[0.9]", "a list of 2"),
        ("optim.matrix.betas=0.9", "a list of 2"),
        ("+model.hidden=[1,x]", "a list, each item a whole number or null"),
        ("quant.coder=lzma", "one of brotli, zstd"),
        ("seed=x", "a whole number"),
        ("force=yes", "true or false"),
        ("paths.runs=3", "text"),
        ("kernels=fast", "one of auto"),
        ("launch.nproc=all", "a whole number or null"),
        ("quant.schemes.matrix=6", "expected a part"),
        ("audit=none", "expected a node"),
        ("audit=null", "expected a node"),
    ],
)
def test_a_wrong_type(conf: Path, override: str, expected: str) -> None:
    found = only(problems(conf, override))
    assert found.startswith(override.lstrip("+").partition("=")[0])
    assert expected in found and "(command line)" in found


def test_a_wrong_seed_is_found_beside_a_right_one(conf: Path) -> None:
    assert "seed = x" in only(problems(conf, "seed=1,x", multirun=True))
    assert "seed = x" in only(problems(conf, "seed=x"))


def test_an_int_is_fine_for_a_float_and_null_where_it_is_allowed(conf: Path) -> None:
    assert problems(conf, "optim.matrix.lr=1", "+model.hidden=null", "train.victim=1") == []


def test_a_missing_argument_names_the_node_that_needs_it(conf: Path) -> None:
    path = conf / "model" / "tiny.yaml"
    path.write_text(path.read_text().replace("dim: 128\n", ""))
    found = only(problems(conf, "scale=full"))
    assert found.startswith("model.dim is missing (") and "model/tiny.yaml:3)" in found
    assert "pgolf.fakes.Model needs it: a whole number" in found


def test_a_question_mark_value_and_a_broken_interpolation(conf: Path) -> None:
    (conf / "data" / "tiny.yaml").write_text(
        "_target_: pgolf.fakes.Data\nname: ???\nsource: ${model.nothing}\nval_fraction: 0.1\n"
    )
    name, source = problems(conf)
    assert name.startswith("data.name is missing") and "no file and no override" in name
    assert source.startswith("data.source is missing") and "interpolation" in source


@pytest.mark.parametrize(
    ("overrides", "key", "words"),
    [
        (
            ("model.dim=100", "model.attention.num_heads=8"),
            "model.attention:",
            ("dim=100", "num_heads=8"),
        ),
        (("optim.matrix.lr=0",), "optim.matrix:", ("lr=0 must be positive",)),
        (("quant.schemes.matrix.bits=9",), "quant.schemes.matrix:", ("bits=9 must be in 1..8",)),
        (("launch.nproc=0",), "launch:", ("nproc=0 must be 1 or more",)),
    ],
)
def test_an_impossible_combination(conf: Path, overrides: tuple[str, ...], key: str, words: tuple[str, ...]) -> None:
    found = only(problems(conf, *overrides))
    assert found.startswith(key)
    assert all(word in found for word in words)
    assert "(command line)" in found


def test_a_constructor_below_a_partial_is_named(conf: Path) -> None:
    found = only(problems(conf, "experiment=big", "model.attention.num_heads=7"))
    assert "model.dim = 256 (" in found and "experiment/big.yaml:5)" in found
    assert "model.attention.num_heads = 7 (command line)" in found


def test_several_problems_are_told_at_once(conf: Path) -> None:
    found = problems(
        conf,
        "ttt=phasd",
        "model.dmi=1",
        "+model.foo=1",
        "seed=x",
        "quant.coder=lzma",
        "optim.matrix.lr=x",
    )
    assert len(found) == 6
    for key in ("ttt=phasd", "model.dmi", "model.foo", "seed", "quant.coder", "optim.matrix.lr"):
        assert any(one.startswith(key) for one in found), key


def test_problems_of_a_sweep_are_told_once_and_only_where_they_are(conf: Path) -> None:
    assert problems(conf, "seed=1,2,3", "model.dim=32,64", "ttt=none,phased", multirun=True) == []
    found = only(problems(conf, "seed=1,2,3", "model.dim=x,64", multirun=True))
    assert found.startswith("model.dim = x")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("os.system", "targets outside pgolf are refused"),
        ("torch.load", "targets outside pgolf are refused"),
        ("pgolf.nothing.Model", "no module pgolf.nothing"),
        ("pgolf.fakes.Modell", "did you mean 'Model'?"),
        ("pgolf.fakes.Scheme", "expected a part"),
    ],
)
def test_a_wrong_target(conf: Path, target: str, words: str) -> None:
    found = problems(conf, f"data._target_={target}", "model.attention._target_=pgolf.fakes.Attention")
    if target == "pgolf.fakes.Scheme":
        assert any("pgolf.fakes.Scheme" in one for one in found)
        return
    assert any(one.startswith("data._target_") and words in one for one in found), found


def test_a_part_in_the_wrong_slot(conf: Path) -> None:
    path = conf / "quant" / "tiny.yaml"
    path.write_text("_target_: pgolf.fakes.Quant\ncoder:\n  _target_: pgolf.fakes.Gate\nschemes: {}\n")
    found = problems(conf)
    assert any("quant.coder._target_" in one and "one of brotli, zstd" in one for one in found)


def test_partial_is_required_exactly_with_run_time_arguments(conf: Path) -> None:
    needs = only(problems(conf, "~model._partial_"))
    assert "gets vocab_size, seed at run time" in needs and "_partial_: true" in needs
    extra = only(problems(conf, "+data._partial_=true"))
    assert "gets nothing at run time" in extra


def test_hydras_other_keys_are_refused(conf: Path) -> None:
    assert "only _target_ and _partial_" in only(problems(conf, "+model._recursive_=false"))


def test_what_a_preset_set_on_a_part_that_is_taken_away_has_nothing_to_act_on(conf: Path) -> None:
    with composer(None, conf) as made:
        job = made.jobs(["experiment=big", "model/attention/gate=none"], False)[0]
    assert problems_of(job) == []
    assert job.config["model"]["attention"]["gate"] == {"_target_": "pgolf.absent.absent"}


def test_a_file_that_is_not_yaml(conf: Path) -> None:
    (conf / "ttt" / "phased.yaml").write_text("phases: [1\n")
    assert "not valid YAML" in only(problems(conf))


def test_an_option_that_only_a_file_asks_for(conf: Path) -> None:
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /ttt: phasd\n")
    found = only(problems(conf, "experiment=mine"))
    assert "did you mean 'phased'?" in found and "command line" not in found


def test_scale_comes_last_and_the_command_line_after_it(conf: Path) -> None:
    def dim(*overrides: str) -> int:
        with composer(None, conf) as made:
            return int(made.jobs(list(overrides), False)[0].config["model"]["dim"])

    assert dim() == 64
    assert dim("scale=full") == 128
    assert dim("experiment=big") == 256  # it overrides the scale
    assert dim("experiment=big", "scale=mini") == 64
    assert dim("experiment=big", "scale=mini", "model.dim=96") == 96


def test_the_shipped_optimisers_are_blamed_by_their_own_key() -> None:
    """Several nodes of one class: that whose arguments were refused; and what training makes later is tried too."""
    assert only(problems(config_directory(), "optim.embedding.betas=[0.9,1.5]")).startswith("optim.embedding:")
    assert "decay=1.2 must lie" in only(
        problems(config_directory(), "train/averaging=several_decays", "train.averaging.decays=[0.9,1.2]")
    )
    assert (
        problems(config_directory(), "train/schedule=step_warmdown", "train.max_steps=null", "train.max_seconds=20")
        == []
    )

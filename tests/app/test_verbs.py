"""The verbs, in this process: fakes where a run is needed, the real parts elsewhere."""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pgolf.app import cli
from pgolf.app.launch import Request, carry_out
from pgolf.app.verbs import SUMMARIES
from pgolf.errors import ConfigError, UserError
from pgolf.files import read_json

from .conftest import REAL_CONF


def verb(name: str, *arguments: str) -> int:
    """Run a verb."""
    return int(importlib.import_module(f"pgolf.app.verbs.{name}").main(list(arguments)))


@pytest.fixture
def here(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; the small configuration is beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(here: Path, conf: Path) -> Path:
    """A finished run."""
    from pgolf.app.compose import composer

    overrides = ["seed=7", "ttt.phases=5"]
    with composer(None, conf) as made:
        job = made.jobs(overrides, False)[0]
    carry_out(Request(job.config, overrides, job.directory))
    return job.directory


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in SUMMARIES:
        with pytest.raises(SystemExit) as stop:
            verb(name, "--help")
        assert stop.value.code == 0, name
        assert f"pgolf {name}" in capsys.readouterr().out


def test_the_command_line_dispatches_and_shows_user_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pgolf", "data", "download"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("pgolf: data=pydocs is prepared from documents on this machine")


def test_eval_scores_again_below_the_run(run: Path, conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--config-path", str(conf))
    assert verb("eval", f"run={run}", "ttt=none", *flags) == 0
    (again,) = run.glob("eval-*")
    assert "requantise=False" in capsys.readouterr().out
    config = read_json(again / "config.json")
    assert config["ttt"] == {"_target_": "pgolf.absent.absent"} and config["seed"] == 7
    assert read_json(again / "run.json")["source"] == str(run)
    assert read_json(again / "summary.json")["val_bpb"] == 1.25
    assert read_json(run / "summary.json")["val_bpb"] == 1.5
    assert verb("eval", f"run={run}", "ttt=none", *flags) == 0
    assert "is finished" in capsys.readouterr().out
    assert verb("eval", f"run={run}", "quant.coder=zstd", *flags) == 0
    assert "requantise=True" in capsys.readouterr().out
    (other,) = set(run.glob("eval-*")) - {again}
    assert read_json(other / "config.json")["ttt"]["phases"] == 5  # an override of the run itself


@pytest.mark.parametrize("sweep", ["ttt=glob(*)", "ttt=none,phased"])
def test_eval_sweeps_over_a_run(run: Path, conf: Path, capsys: pytest.CaptureFixture[str], sweep: str) -> None:
    flags = ("--config-path", str(conf))
    assert verb("eval", "--multirun", f"run={run}", "quant.coder=zstd", sweep, *flags) == 0
    shown = capsys.readouterr().out
    assert shown.count("requantise=True") == 2 and shown.count("\n  done ") == 2
    assert "job 0: quant.coder=zstd ttt=none" in shown and "job 1: quant.coder=zstd ttt=phased" in shown
    configs = [read_json(path) for path in run.glob("eval-*/config.json")]
    assert sorted("phases" in config["ttt"] for config in configs) == [False, True]
    assert {config["quant"]["coder"] for config in configs} == {"zstd"}
    assert verb("eval", f"run={run}", "-m", "quant.coder=zstd", sweep, *flags) == 0
    assert capsys.readouterr().out.count("\n  skipped ") == 2


def test_a_sweep_of_evaluations_is_refused_as_a_whole(run: Path, conf: Path, here: Path) -> None:
    flags = ("--config-path", str(conf))
    with pytest.raises(ConfigError, match=r"ttt\.phases"):
        verb("eval", f"run={run}", "-m", "ttt.phases=1,many", *flags)
    with pytest.raises(ConfigError, match="multirun"):
        verb("eval", f"run={run}", "ttt.phases=1,2", *flags)
    with pytest.raises(UserError, match="evaluate the checkpoint once"):
        verb("eval", f"checkpoint={here}/a.pt", "-m", "ttt.phases=1,2", *flags)
    assert not list(run.glob("eval-*"))


def test_a_failed_evaluation_does_not_hinder_the_others(
    run: Path, conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--config-path", str(conf))
    monkeypatch.setattr(sys.modules["pgolf.run"], "evaluate", lambda recipe, *_: recipe.nothing)
    assert verb("eval", f"run={run}", "-m", "ttt.phases=1,2", *flags) == 1
    assert capsys.readouterr().out.count("\n  failed ") == 2


def test_eval_keeps_what_the_run_was_even_if_the_files_changed(run: Path, conf: Path) -> None:
    path = conf / "quant" / "tiny.yaml"
    path.write_text(path.read_text().replace("brotli", "zstd"))
    assert verb("eval", f"run={run}", "ttt.phases=1", "--config-path", str(conf)) == 0
    (again,) = run.glob("eval-*")
    config = read_json(again / "config.json")
    assert config["quant"]["coder"] == "brotli" and config["ttt"]["phases"] == 1


def test_eval_refuses_what_needs_training_and_what_is_no_run(run: Path, conf: Path, here: Path) -> None:
    flags = ("--config-path", str(conf))
    with pytest.raises(ConfigError, match="model .*a finished run keeps it"):
        verb("eval", f"run={run}", "model.dim=3", *flags)
    with pytest.raises(ConfigError, match=r"quant\.qat .*trained with or without it"):
        verb("eval", f"run={run}", "quant/qat=late", *flags)
    with pytest.raises(ConfigError, match=r"did you mean 'ttt.phases'"):
        verb("eval", f"run={run}", "ttt.phase=3", *flags)
    with pytest.raises(UserError, match="is not a run directory"):
        verb("eval", f"run={here}", *flags)
    with pytest.raises(UserError, match="needs a run"):
        verb("eval", "ttt=none", *flags)
    assert not list(run.glob("eval-*"))


def test_audit_of_a_run_and_of_a_configuration(run: Path, conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--config-path", str(conf))
    capsys.readouterr()
    assert verb("audit", f"run={run}", *flags) == 0
    assert "Validity: pass" in capsys.readouterr().out
    assert verb("audit", "audit.probes=13", *flags) == 1
    assert "Validity: fail" in capsys.readouterr().out


def test_plan_counts_jobs_and_takes_seconds_from_finished_runs(
    run: Path, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--config-path", str(conf), "--price", "1200")
    capsys.readouterr()
    assert verb("plan", "seed=7,8,9", "ttt.phases=5", *flags) == 0
    shown = capsys.readouterr().out
    assert "3 jobs, 0 finished, 3 to run" in shown and "mean of 1 finished run" in shown
    assert "time: 9 s" in shown and "cost: 3.00 at 1,200.00 an hour" in shown
    assert verb("plan", "seed=7,8", "ttt.phases=5,6", *flags) == 0
    shown = capsys.readouterr().out
    assert "2 jobs of unknown length" in shown and "at least 6 s" in shown
    assert verb("plan", "seed=1,2", "ttt=none", "--seconds", "600", *flags) == 0
    assert "time: 20 min" in capsys.readouterr().out


def test_doctor_says_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("doctor") == 0
    shown = capsys.readouterr().out
    for word in ("python", "attention: sdpa", "coder: brotli", "free disk", "wandb"):
        assert word in shown


def test_doctor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgolf.app.verbs import doctor

    assert doctor._package("no-such-package", "broken", "pip install it") == doctor.Finding(
        "no-such-package", "broken", "not installed", "pip install it"
    )
    monkeypatch.setenv("PATH", os.devnull)
    assert doctor._compiler().state == "missing"


REAL = ("--config-path", str(REAL_CONF))


def test_inspect_shows_plan_parameters_bytes_and_schedules(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("inspect", "model/attention/gate=none", "--plot", "plot.png", *REAL) == 0
    shown = capsys.readouterr().out
    for word in (
        "Layer plan `looped`",
        "blocks.0.attn.c_q.weight",
        "Parameters by role",
        "16,000,000",
        "Schedules over ",
    ):
        assert word in shown, word
    assert (here / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in here.iterdir()] == ["plot.png"]


SMALL = "model.dim=48 train.sequence_tokens=64 train.micro_batch_tokens=64 train.batch_tokens=64"


def test_verify_tells_equal_models_from_different_ones(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verb("verify", "", "quant.coder=zlib ttt=none", *REAL) == 0
    assert "loss difference 0: the same model" in capsys.readouterr().out
    assert verb("verify", f"{SMALL} seed=1", f"{SMALL} seed=2", *REAL) == 1
    assert "state dicts differ" in capsys.readouterr().out
    # the same weights, walked in another order: only the loss can tell
    assert (
        verb(
            "verify",
            f"{SMALL} model.depth.skips=false",
            f"{SMALL} model.depth.skips=false model.depth.num_loops=3",
            *REAL,
        )
        == 1
    )
    assert "state dicts equal" in capsys.readouterr().out
    with pytest.raises(UserError, match="compares two sets"):
        verb("verify", "seed=1", *REAL)


def test_verify_names_the_option_that_fails(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgolf.app.verification import options

    (conf / "ttt" / "wrong.yaml").write_text("_target_: pgolf.fakes.Ttt\nphase: 1\n")
    (conf / "ttt" / "needs.yaml").write_text("_target_: pgolf.fakes.Ttt\nphases: ???\n")
    monkeypatch.setattr(options, "step", lambda job: [])
    assert verb("verify", "--config-path", str(conf)) == 1
    shown = capsys.readouterr().out
    assert "FAIL  ttt=wrong" in shown and "did you mean 'phases'?" in shown
    assert "--    ttt=needs: not tried, it needs ttt.phases=..." in shown
    assert "ok    model/attention/gate=sparse" in shown and "1 failed.\n" in shown and "1 failed\n" in shown
    assert "this configuration has no preset pr2059_baseline" in shown


def test_docs_is_the_published_preparation_of_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "Def Return class VALUE list String number text index item".split()
    file = here / "docs, one.jsonl"
    texts = [" ".join(words[(row * shift) % 10] for shift in range(1, 40)) + f" {row}" for row in range(200)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    small = ("data.val_docs=20", "data.tokenizer.vocab_size=300", "data/transform=caseops", *REAL)
    docs = f"docs={file}"
    with pytest.raises(UserError, match=r"data\.val_docs=50000 .*only 200.*set data\.val_docs below 200"):
        verb("data", "prepare", docs, "data.tokenizer.vocab_size=300", *REAL)
    assert verb("data", "prepare", docs, *small) == 0
    (prepared,) = (here / "datasets").glob("docs-*")
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["split"]["val_docs"] == 20 and manifest["splits"]["val"]["documents"] == 20
    assert manifest["recipe"]["order"] == "source" and manifest["recipe"]["duplicates"] == "refuse"
    assert manifest["recipe"]["tokenizer"]["kind"] == "sentencepiece_published" and manifest["lossless"]
    assert verb("data", "verify", docs, *small) == 0
    assert "configuration" in capsys.readouterr().out
    assert verb("data", "train-tokenizer", f"out={here / 'my.model'}", docs, *small) == 0
    assert (here / "my.model").read_bytes() == (prepared / "tokenizer.model").read_bytes()
    file_option = ("data/tokenizer=file", f"data.tokenizer.path={here / 'my.model'}", "data.val_docs=20", *REAL)
    assert verb("data", "prepare", docs, "data/transform=caseops", *file_option) == 0
    with pytest.raises(ConfigError, match="docs=FILE stands for data=docs"):
        verb("data", "prepare", docs, "data=text", *small)


def test_data_verbs_over_a_small_corpus(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "def return class value list string number text index item".split()
    lines = [" ".join(words[(row + shift) % 10] for shift in range(12)) + f" {row}" for row in range(400)]
    texts = here / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"document{number}.txt").write_text("\n".join(lines[number * 10 : number * 10 + 10]) + "\n")
    data: tuple[Any, ...] = (
        "data=text",
        f"data.source.paths=[{texts}]",
        "data.val_fraction=0.2",
        "data.tokenizer.vocab_size=300",
        *REAL,
    )
    assert verb("data", "prepare", *data) == 0
    (prepared,) = (here / "datasets").glob("text-*")
    assert verb("data", "verify", str(prepared)) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert verb("data", "stats", f"out={here / 'figures'}", *data) == 0
    shown = capsys.readouterr().out
    assert "Most frequent training tokens" in shown and "Lengths of the training documents" in shown and "####" in shown
    assert (here / "figures" / f"{prepared.name}.lengths.png").exists()
    assert verb("data", "train-tokenizer", f"out={here / 'tokenizer.model'}", *data) == 0
    assert (here / "tokenizer.model").stat().st_size > 1000
    shard = next(prepared.glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2] + b"\xff\xff")
    assert verb("data", "verify", str(prepared)) == 1
    assert "FAIL" in capsys.readouterr().out
    assert verb("data", "verify", str(prepared), "data/transform=caseops", *data) == 1
    assert "data.transform: prepared with none" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs one of prepare"):
        verb("data", "prepar")
    with pytest.raises(UserError, match="pgolf data prepare"):
        verb("data", "stats", str(here / "nowhere"))


def test_a_new_choice_of_a_group_drops_what_was_set_inside_the_old_one() -> None:
    from pgolf.app.verbs.rerun import _merged

    stored = ["quant/rotation=online", "quant.rotation.sites=[mlp_in]", "quant.rotations=1", "quant.matrix.bits=4"]
    assert _merged(stored, ["quant/rotation=none"]) == [
        "quant.rotations=1",
        "quant.matrix.bits=4",
        "quant/rotation=none",
    ]
    assert _merged(stored, ["quant.rotation.seed=1"])[:2] == stored[:2]
    assert _merged(stored, ["quant/scheme@quant.matrix=int8"])[-2:] == [
        "quant.rotations=1",
        "quant/scheme@quant.matrix=int8",
    ]
    assert _merged(stored, ["quant=trellis"]) == ["quant=trellis"]

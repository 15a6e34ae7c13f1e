"""A run directory from its first process to its last: skip, force, lock, failures."""

import json
from pathlib import Path
from typing import Any

import pytest

from pgolf.app.compose import composer
from pgolf.app.launch import Request, carry_out
from pgolf.app.lock import NotOurs, RunLock
from pgolf.digest import digest
from pgolf.files import read_json, write_json


@pytest.fixture
def request_(conf: Path, tmp_path: Path) -> Any:
    """Make a request from overrides; its directory is fixed unless the name changes."""

    def make(*overrides: str, directory: str = "run") -> Request:
        with composer(None, conf) as made:
            job = made.jobs([f"paths.runs={tmp_path}", *overrides], False)[0]
        return Request(job.config, list(overrides), tmp_path / directory)

    return make


def test_a_run_leaves_a_complete_directory(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_("seed=7", "ttt=none")
    outcome = carry_out(request)
    assert (outcome.state, outcome.exit_status) == ("done", 0)
    status, identity = (read_json(request.directory / name) for name in ("status.json", "run.json"))
    assert status == {
        "state": "done",
        "stage": "train",
        "digest": digest(request.config),
        "error": None,
    }
    assert identity["seed"] == 7 and identity["name"] == "default"
    assert {
        "digest",
        "config_hash",
        "code_hash",
        "python",
        "torch",
        "platform",
        "git",
    } <= identity.keys()
    assert read_json(request.directory / "config.json") == request.config
    overrides = (request.directory / ".hydra" / "overrides.yaml").read_text()
    assert "seed=7" in overrides and "ttt=none" in overrides
    shown, log = capsys.readouterr().out, (request.directory / "train.log").read_text()
    assert "rank 0 of 1 trains" in shown and "rank 0 of 1 trains" in log
    assert "before quantisation" in shown and "1.60000" in shown and "C1 causality" in shown


def test_a_finished_run_is_skipped_and_nothing_in_it_changes(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_()
    carry_out(request)
    before = {
        path: path.read_bytes() for path in request.directory.rglob("*") if path.name != ".lock" and path.is_file()
    }
    capsys.readouterr()
    outcome = carry_out(request_("track=wandb_offline"))
    assert (outcome.state, outcome.exit_status) == ("skipped", 0)
    assert outcome.summary is not None and outcome.summary["val_bpb"] == 1.5
    assert "is finished: val_bpb 1.50000" in capsys.readouterr().out
    assert all(path.read_bytes() == data for path, data in before.items())


def test_force_runs_again_and_keeps_every_earlier_result(request_: Any) -> None:
    request = request_()
    carry_out(request)
    for number in (1, 2):
        assert carry_out(request_("force=true")).state == "done"
        kept = request.directory.with_name(f"run.previous-{number}")
        assert read_json(kept / "status.json")["state"] == "done"
        assert (request.directory / "starts").read_text() == "x"


def test_an_unfinished_run_is_continued(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_()
    carry_out(request)
    write_json(
        request.directory / "status.json",
        {"state": "running", "stage": "train", "digest": digest(request.config), "error": None},
    )
    assert carry_out(request).state == "done"
    assert (request.directory / "starts").read_text() == "xx"
    assert "continuing the run" in capsys.readouterr().out


def test_changed_code_is_said_when_continuing(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_("train.behaviour=fail")
    carry_out(request)
    identity = read_json(request.directory / "run.json")
    write_json(request.directory / "run.json", identity | {"code_hash": "another", "stages": {"train": 1}})
    carry_out(request)
    assert "have changed since this run began" in capsys.readouterr().out
    assert read_json(request.directory / "run.json")["stages"] == {"train": 1}


def test_a_directory_of_another_configuration_is_refused_and_left_alone(
    request_: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(request_())
    other = request_("model.dim=32")
    outcome = carry_out(other)
    assert (outcome.state, outcome.exit_status) == ("failed", 1)
    assert "holds the run of another configuration" in capsys.readouterr().out
    assert read_json(other.directory / "status.json")["state"] == "done"
    assert read_json(other.directory / "config.json") != other.config


def test_a_second_process_in_the_same_directory_is_refused(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_()
    with RunLock(request.directory, print):
        outcome = carry_out(request)
    assert outcome.exit_status == 1
    assert "is in use by process" in capsys.readouterr().out
    assert not (request.directory / "status.json").exists()
    assert carry_out(request).state == "done"


def test_the_lock_ends_with_its_last_holder(tmp_path: Path) -> None:
    import os

    lock = RunLock(tmp_path, print)
    with lock:
        child = os.dup(lock.descriptor)  # as a child process inherits it
    with pytest.raises(NotOurs):
        RunLock(tmp_path, print).__enter__()
    os.close(child)
    with RunLock(tmp_path, print):
        pass


def test_a_crash_is_a_sentence_and_a_traceback_in_the_log(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_("train.behaviour=fail")
    outcome = carry_out(request)
    assert (outcome.state, outcome.exit_status) == ("failed", 1)
    shown = capsys.readouterr()
    assert "RuntimeError: the fake broke on rank 0 (traceback in " in shown.out
    assert "Traceback" not in shown.out + shown.err
    log = (request.directory / "train.log").read_text()
    assert "Traceback (most recent call last)" in log and "fake_run.py" in log
    status = read_json(request.directory / "status.json")
    assert (status["state"], status["stage"]) == ("failed", "train") and "the fake broke" in status["error"]


def test_a_user_error_is_its_sentence_alone(request_: Any, capsys: pytest.CaptureFixture[str]) -> None:
    request = request_("train.behaviour=refuse")
    assert carry_out(request).sentence == "the disk is full: free some space."
    assert "pgolf: the disk is full: free some space." in capsys.readouterr().out
    assert "Traceback" not in (request.directory / "train.log").read_text()


def test_a_run_over_the_byte_limit_is_a_failed_one_and_keeps_its_numbers(
    request_: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    request = request_("train.behaviour=too_large")
    outcome = carry_out(request)
    assert (outcome.state, outcome.exit_status) == ("failed", 1)
    status = read_json(request.directory / "status.json")
    assert status["state"] == "failed"
    assert status["error"].startswith(
        "over the limit by 1,200 bytes: weights 1,000 + code 200 (shipped) = 16,001,200 > "
    )
    assert "largest savings at hand: quant.coder=rans: another coder (900 bytes)" in status["error"]
    shown = capsys.readouterr().out
    assert "DOES NOT FIT" in shown and "would save: quant.coder=rans" in shown
    assert read_json(request.directory / "summary.json")["val_bpb"] == 1.5


def test_an_interruption_is_one_sentence(
    request_: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pgolf import run

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "execute", interrupted)
    request = request_()
    outcome = carry_out(request)
    assert (outcome.state, outcome.exit_status) == ("interrupted", 130)
    assert "interrupted; the same command continues." in capsys.readouterr().out
    assert json.loads((request.directory / "status.json").read_text())["state"] == "failed"

"""Published shards by the command line: downloaded from a hub on this machine, verified, and trained on without it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgolf.files import read_json
from tests.data.fake_hub import FakeHub
from tests.data.publication import CASEOPS, REPOSITORY, VAL_DOCUMENTS, publish

from .conftest import TINY, end_at, only, pgolf, refused, succeed

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
OPTION = f"""
defaults:
  - transform: caseops
  - _self_
_target_: pgolf.data.published.config.PublishedData
name: golf
repository: {REPOSITORY}
variant: {CASEOPS}
vocab_size: 400
train_shards: 5
val_documents: {VAL_DOCUMENTS}
"""
SETTINGS = [one for one in TINY if not one.startswith("data")]
SETTINGS += ["train.batch_tokens=256", "train.micro_batch_tokens=128", "train.max_steps=2"]  # shards of 300 tokens


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeHub, list[str]]]:
    """A hub that the library of a child process finds, and the words that choose its data."""
    (tmp_path / "conf" / "data").mkdir(parents=True)
    (tmp_path / "conf" / "data" / "golf.yaml").write_text(OPTION)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with FakeHub(REPOSITORY) as hub:
        hub.publish(publish(caseops=True).files)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub, ["--config-dir", str(tmp_path / "conf"), "data=golf", f"paths.data={tmp_path / 'data'}"]


def test_a_download_is_verified_and_trained_on_without_a_network(places, tmp_path: Path) -> None:
    hub, words = places
    sentence = refused(pgolf(*words, *SETTINGS, f"paths.runs={tmp_path / 'runs'}"), 1, "data.train_shards=5")
    assert f"pgolf data download data=golf data.train_shards=5 paths.data={tmp_path / 'data'}" in sentence
    shown = succeed("data", "download", *words)
    assert "is at commit" in shown and "ids" in shown and "Downloading" in shown
    hub.down = True
    directory = only(tmp_path / "data", "golf-*")
    verified = succeed("data", "verify", *words)
    assert "FAIL" not in verified and "published figures" in verified
    found = pgolf("data", "verify", str(directory), *words, "data/transform=none")
    assert found.returncode == 1 and "data.transform" in found.stdout
    succeed(*words, *SETTINGS, f"paths.runs={tmp_path / 'runs'}")
    summary = read_json(only(tmp_path / "runs", "*-seed*") / "summary.json")
    validation = read_json(directory / "manifest.json")["splits"]["val"]
    assert summary["stages"]["final"]["bytes"] == validation["charged"] and summary["audit"]["verdict"] == "pass"


def test_a_killed_download_keeps_its_files_and_goes_on(places, tmp_path: Path) -> None:
    hub, words = places
    name = "fineweb_train_000003.bin"
    killed = end_at(tmp_path, name, 1, signal.SIGKILL, "data", "download", *words, "--train-shards", "6")
    assert killed.returncode == -signal.SIGKILL
    kept = {path.name for path in (tmp_path / "data").glob(".golf-*/*.bin")}
    assert kept and name not in kept and not list((tmp_path / "data").glob("golf-*"))
    before = len(hub.transfers())
    assert "Continuing at commit" in succeed("data", "download", *words, "--train-shards", "6")
    # The staging name of a file that was under way is fetched again; nothing that was finished is.
    again = {Path(path).name for path in hub.transfers()[before:]}
    assert not again & kept
    assert len(read_json(only(tmp_path / "data", "golf-*") / "manifest.json")["splits"]["train"]["files"]) == 6


def test_a_hub_that_is_down_and_a_wrong_choice_are_said_in_a_sentence(places, tmp_path: Path) -> None:
    hub, words = places
    refused(pgolf("data", "download", "data=pydocs"), 1, "data=pydocs is prepared from documents", "fineweb_sp8192")
    hub.down = True
    refused(pgolf("data", "download", *words), 1, REPOSITORY, "503")
    assert not list((tmp_path / "data").glob("golf-*/manifest.json"))

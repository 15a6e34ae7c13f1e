"""Weights & Biases offline, read back from disk; and that its troubles are never the run's."""

import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgolf.app.tracking import NoTracker, WandbTracker, flatten
from pgolf.errors import UserError

IDENTITY = {"digest": "d" * 64, "group_digest": "e" * 64, "seed": 7}
CONFIG = {"seed": 7, "model": {"dim": 64, "gate": {"width": 12}}, "name": "tiny"}


class Said:
    """A console that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        """Remember."""
        self.lines.append(message)

    def task(self, title: str, total: int | None) -> Any:
        """Not used by trackers."""
        raise AssertionError(title)


def read_back(folder: Path, patience: float = 60.0) -> list[Any]:
    """The records of the one offline wandb run below a directory.

    Another process writes them, and on a busy machine it is not through when the run is finished: they are complete
    when the last kind, the exit, is there.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + patience
    while True:
        records = [Record.FromString(data) for data in log_entries(path.read_bytes())]
        if any(one.WhichOneof("record_type") == "exit" for one in records) or time.monotonic() > end:
            return records
        time.sleep(0.1)


def log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log: 32 KiB blocks of pieces (checksum 4, length 2, kind 1, bytes).

    Kinds: 1 a whole entry, 2 its first piece, 3 a middle one, 4 the last. wandb puts 7 bytes first.
    """
    position, entry, block = 7, b"", 32768
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if position + 7 + length > len(data):  # still being written
            return
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield entry
            entry = b""


def items(entries: Any) -> dict[str, str]:
    """Key (nested keys joined by a slash) to JSON text."""
    return {entry.key or "/".join(entry.nested_key): entry.value_json for entry in entries}


def test_an_offline_run_holds_config_events_and_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb")
    said, tracker = (
        Said(),
        WandbTracker(mode="offline", required=True, project="pgolf", entity=None, tags=["try"]),
    )
    directory = tmp_path / "tiny-eeeeeeee-seed7"
    directory.mkdir()
    tracker.start(directory, IDENTITY, CONFIG, said)
    for step in (1, 2):
        tracker.log({"event": "step", "step": step, "train_loss": 3.0 / step, "note": "words"})
    tracker.log({"event": "stage", "stage": "train", "state": "done", "seconds": 1.5})
    tracker.finish({"val_bpb": 1.5, "stages": {"final": {"val_bpb": 1.5}}})
    tracker.finish(None)  # a second time is nothing
    records = read_back(directory)
    (run,) = [one.run for one in records if one.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group) == ("d" * 32, "tiny-" + "e" * 8)
    assert run.job_type == "train" and list(run.tags) == ["tiny", "try"]
    assert (run.project, run.display_name) == ("pgolf", directory.name)
    config = items(run.config.update)
    assert config["model.gate.width"] == "12" and config["seed"] == "7" and config["identity.seed"] == "7"
    assert "model" not in config
    history = [items(one.history.item) for one in records if one.WhichOneof("record_type") == "history"]
    assert [one["step/train_loss"] for one in history if "step/train_loss" in one] == ["3", "1.5"]
    assert any(one.get("stage/train/seconds") == "1.5" for one in history)
    summaries = [items(one.summary.update) for one in records if one.WhichOneof("record_type") == "summary"]
    assert any(one.get("stages.final.val_bpb") == "1.5" for one in summaries)
    (exit_record,) = [one.exit for one in records if one.WhichOneof("record_type") == "exit"]
    assert exit_record.exit_code == 0
    assert said.lines == []
    shown = capfd.readouterr()
    assert shown.out == "" and "wandb" not in shown.err


def test_without_wandb_it_says_so_once_or_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    said, tracker = Said(), WandbTracker(mode="offline", required=False, project="p", entity=None, tags=["try"])
    tracker.start(tmp_path, IDENTITY, CONFIG, said)
    tracker.log({"event": "step", "step": 1})
    tracker.finish({"val_bpb": 1.0})
    assert len(said.lines) == 1 and "wandb is not installed" in said.lines[0]
    required = WandbTracker(mode="online", required=True, project="p", entity=None, tags=["try"])
    with pytest.raises(UserError, match=r"needs wandb: pip install"):
        required.start(tmp_path, IDENTITY, CONFIG, said)


@pytest.mark.parametrize("breaks", ["init", "log", "finish"])
def test_a_failing_wandb_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    class Broken:
        """Stands for the module and for its run; one of its calls raises."""

        summary: dict[str, Any] = {}

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any, **keywords: Any) -> "Broken":
                if name == breaks:
                    raise ConnectionError("no route to host")
                return self

            return call

    monkeypatch.setitem(sys.modules, "wandb", Broken())
    said, tracker = Said(), WandbTracker(mode="online", required=True, project="p", entity=None, tags=["try"])
    tracker.start(tmp_path, IDENTITY, CONFIG, said)
    tracker.log({"event": "step", "step": 1})
    tracker.log({"event": "step", "step": 2})
    tracker.finish({"val_bpb": 1.0})
    assert len(said.lines) == 1
    assert "no route to host" in said.lines[0] and "goes on without it" in said.lines[0]


def test_no_tracker_takes_everything(tmp_path: Path) -> None:
    tracker = NoTracker()
    tracker.start(tmp_path, IDENTITY, CONFIG, Said())
    tracker.log({"event": "step"})
    tracker.finish(None)
    assert list(tmp_path.iterdir()) == []


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}

"""Checkpoints: whole or refused, one behind the other, written while training goes on."""

import os
import threading

import pytest
import torch

from pgolf import files
from pgolf.errors import UserError
from pgolf.train import checkpoint
from pgolf.train.checkpoint import Checkpoints
from tests.support import ALONE
from tests.train.small import Spoken, losses, train


def kept(directory, number: int, keep: int = 3, background: bool = False) -> Checkpoints:
    """A directory after `number` states, each of which holds its own number."""
    made = Checkpoints(directory, keep=keep, background=background)
    for step in range(1, number + 1):
        made.save({"step": step, "x": torch.full((100,), float(step))})
    made.close()
    return made


def damage(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def newest(made: Checkpoints) -> tuple[dict | None, list[str]]:
    console = Spoken()
    return made.newest(ALONE, console), console.said


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_states_are_kept_newest_first(tmp_path, keep, background):
    made = kept(tmp_path, 5, keep, background)
    names = ["state.pgolf", *(f"earlier-{number}.pgolf" for number in range(1, keep))]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert [checkpoint.load(tmp_path / name)["step"] for name in names] == [5, 4, 3][:keep]
    assert newest(made)[0]["step"] == 5 and newest(made)[1] == []


def test_fewer_are_kept_once_fewer_are_wanted(tmp_path):
    kept(tmp_path, 4, keep=4)
    kept(tmp_path, 1, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["earlier-1.pgolf", "state.pgolf"]


def test_a_damaged_newest_state_falls_back_aloud_to_the_one_before(tmp_path):
    made = kept(tmp_path, 4)
    damage(made.path)
    found, said = newest(made)
    assert found["step"] == 3
    assert len(said) == 1 and "state.pgolf is damaged: continuing from the state before it" in said[0]
    assert sorted(os.listdir(tmp_path)) == ["damaged.pgolf", "earlier-2.pgolf", "state.pgolf"]
    assert newest(made)[0]["step"] == 3 and newest(made)[1] == []  # settled
    made.save({"step": 4})
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("state.pgolf", "earlier-1.pgolf")] == [4, 3]


def test_when_all_are_damaged_the_newest_is_named(tmp_path):
    made = kept(tmp_path, 2)
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(UserError, match="state.pgolf is damaged.*delete it"):
        newest(made)
    assert newest(Checkpoints(tmp_path / "empty", keep=1)) == (None, [])


def test_a_state_whose_newer_one_is_missing_is_found(tmp_path):
    made = kept(tmp_path, 3)
    made.path.unlink()
    assert newest(made)[0]["step"] == 2


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "state.pgolf"
    checkpoint.save(path, {"step": 3, "x": torch.arange(4)})
    assert torch.equal(checkpoint.load(path)["x"], torch.arange(4))
    good = path.read_bytes()
    for bad in (good[:-5], good[:60] + bytes([good[60] ^ 1]) + good[61:], b"", b"something else entirely"):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="state.pgolf is damaged.*delete it"):
            checkpoint.load(path)
    path.write_bytes(b"PGOLFCP1" + good[8:])
    with pytest.raises(UserError, match="another version of pgolf"):
        checkpoint.load(path)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_leaves_the_states_that_were_there(tmp_path, monkeypatch, background):
    made = kept(tmp_path, 2, background=background)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="state.pgolf: No space left on device"):
        made.save({"step": 3})
        made.close()
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    made.save({"step": 3})
    made.close()
    assert newest(made)[0]["step"] == 3


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refused(*names):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    made = kept(tmp_path, 3, keep=2)
    assert [checkpoint.load(tmp_path / name)["step"] for name in ("state.pgolf", "earlier-1.pgolf")] == [3, 2]
    assert newest(made)[0]["step"] == 3


def test_a_state_is_written_as_it_was_when_it_was_handed_over(tmp_path, monkeypatch):
    """Training goes on changing the tensors while a thread writes."""
    go, write = threading.Event(), checkpoint.save

    def slow(path, state):
        go.wait(10)
        write(path, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    made, x = Checkpoints(tmp_path, keep=1, background=True), torch.zeros(5)
    made.save({"x": x, "nested": [{"x": x}]})
    x += 1.0
    go.set()
    made.close()
    found = newest(made)[0]
    assert found["x"].sum() == 0.0 and found["nested"][0]["x"].sum() == 0.0


def test_a_thread_writes_what_would_hold_training_up(tmp_path, monkeypatch):
    writers, write = [], checkpoint.save

    def noted(path, state):
        writers.append(threading.current_thread().name)
        write(path, state)

    monkeypatch.setattr(checkpoint, "save", noted)
    made = Checkpoints(tmp_path, keep=1)
    large = torch.zeros(checkpoint.LARGE, dtype=torch.uint8)
    for state in ({"x": torch.zeros(5)}, {"nested": [{"x": large}]}):
        made.save(state)
        made.close()
    assert writers == [threading.current_thread().name, "checkpoint"]
    assert newest(made)[0]["nested"][0]["x"].nbytes == checkpoint.LARGE


def test_training_continues_from_the_state_before_a_damaged_one(tmp_path):
    whole, _, events, _ = train(tmp_path / "whole", max_steps=8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", max_steps=8, checkpoint_seconds=0.0, stop_after=6)
    damage(tmp_path / "cut" / "checkpoint" / "state.pgolf")
    console = Spoken()
    rest, _, tail, _ = train(tmp_path / "cut", max_steps=8, console=console)
    assert [event["step"] for event in tail] == [5, 6, 7, 8] and losses(tail) == losses(events)[4:]
    assert all(torch.equal(whole[name], rest[name]) for name in whole)
    assert "is damaged" in console.said[0] and "continuing from step 4" in console.said[1]

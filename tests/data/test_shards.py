"""The shard container."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data import shards
from pgolf.data.shards import (
    HEADER_BYTES,
    TokenStream,
    iterate_documents,
    read_shard,
    shard_length,
    write_shard,
)
from pgolf.errors import UserError

from .corpus import ON_DISK

VALUES = st.lists(st.integers(1, 65_535), min_size=1, max_size=300)


def test_the_bytes_on_disk_are_the_published_container(tmp_path):
    path = tmp_path / "train_000000.bin"
    write_shard(path, np.array([1, 2, 65_535]))
    raw = path.read_bytes()
    assert len(raw) == 1024 + 6
    assert np.frombuffer(raw, "<i4", 256).tolist() == [20240520, 1, 3] + [0] * 253
    assert raw[1024:] == b"\x01\x00\x02\x00\xff\xff"


@ON_DISK
@given(values=VALUES)
def test_round_trip(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("shard") / "x.bin"
    write_shard(path, np.array(values))
    assert read_shard(path).tolist() == values
    assert shard_length(path) == len(values)


DOCUMENTS = st.lists(st.lists(st.integers(2, 900), max_size=12), min_size=1, max_size=6)


def write_stream(directory, values, shard_tokens):
    files = []
    for at in range(0, len(values), shard_tokens):
        files.append(directory / f"val_{len(files):06d}.bin")
        write_shard(files[-1], np.array(values[at : at + shard_tokens]))
    return files


@ON_DISK
@given(documents=DOCUMENTS, shard_tokens=st.integers(2, 20))
def test_documents_that_cross_shard_ends_are_joined(documents, shard_tokens, tmp_path_factory):
    stream = [token for document in documents for token in (1, *document)]
    files = write_stream(tmp_path_factory.mktemp("documents"), stream, shard_tokens)
    found = [ids.tolist() for ids in iterate_documents(files, bos_id=1)]
    assert found == documents


@ON_DISK
@given(values=VALUES, shard_tokens=st.integers(2, 60), data=st.data())
def test_any_part_of_a_stream_can_be_read(values, shard_tokens, data, tmp_path_factory):
    stream = TokenStream(write_stream(tmp_path_factory.mktemp("stream"), values, shard_tokens))
    start = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(start, len(values)))
    assert len(stream) == len(values)
    assert stream.read(start, end).tolist() == values[start:end]


@pytest.mark.parametrize("value", [-1, 65_536])
def test_values_that_do_not_fit_are_refused(value, tmp_path):
    with pytest.raises(ValueError, match="between 0 and 65535"):
        write_shard(tmp_path / "x.bin", np.array([1, value]))


def damage(data: bytes, how: str) -> bytes:
    header, body = data[:HEADER_BYTES], data[HEADER_BYTES:]
    return {
        "truncated body": data[:-2],
        "truncated header": data[:100],
        "empty": b"",
        "too long": data + b"\x01\x00",
        "all zero": bytes(len(data)),
        "zero body": header + bytes(len(body)),
        "zero tail": header + body[:8] + bytes(len(body) - 8),
        "magic": b"\x01" + data[1:],
        "version": data[:4] + b"\x02" + data[5:],
    }[how]


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("truncated body", "is truncated: it has"),
        ("truncated header", "less than a header of 1024"),
        ("empty", "less than a header of 1024"),
        ("too long", "is too long"),
        ("all zero", "is filled with zeros"),
        ("zero body", "ends in zeros"),
        ("zero tail", "ends in zeros"),
        ("magic", "is not a token shard"),
        ("version", "has version 2"),
    ],
)
def test_each_damage_has_its_own_sentence(how, sentence, tmp_path):
    path = tmp_path / "train_000000.bin"
    write_shard(path, np.arange(1, 3000))
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(UserError, match=sentence) as caught:
        read_shard(path)
    assert str(path) in str(caught.value)


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.bin"):
        shard_length(tmp_path / "none.bin")


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3)


@ON_DISK
@given(values=VALUES, changes=CHANGES, cut=st.none() | st.integers(0, 10**6))
def test_changed_bytes_give_a_sentence_or_the_values_that_are_there(values, changes, cut, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzz.bin"
    write_shard(path, np.array(values))
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    path.write_bytes(data[: None if cut is None else cut % (len(data) + 1)])
    try:
        found = read_shard(path)
    except UserError as error:
        sentence = str(error)
        assert "fuzz.bin" in sentence
    else:
        assert found.tobytes() == bytes(data[HEADER_BYTES:]) and len(found) == len(values)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_a_histogram_counts_every_id_block_by_block(tmp_path, block, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", block)
    write_shard(tmp_path / "a.bin", np.array([1, 5, 5, 9, 2, 5]))
    assert shards.histogram(tmp_path / "a.bin", 6).tolist() == [0, 1, 1, 0, 0, 3, 0, 0, 0, 1]
    assert shards.histogram(tmp_path / "a.bin", 12).tolist() == [0, 1, 1, 0, 0, 3, 0, 0, 0, 1, 0, 0]
    assert [(first, part.tolist()) for first, part in shards.blocks(np.arange(4))] == [
        (first, list(range(first, min(first + block, 4)))) for first in range(0, 4, block)
    ]

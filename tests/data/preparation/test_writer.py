"""Shards, byte counts and index of one split, in one go and after any interruption."""

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.encoding.frontend import Encoded
from pgolf.data.index import DocumentIndex
from pgolf.data.preparation.writer import SplitWriter
from pgolf.data.shards import read_shard
from pgolf.data.sources.documents import Document
from pgolf.errors import UserError

INTERRUPTED = settings(deadline=None, max_examples=12)  # Every shard waits for the disk.
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)


def batch(lengths: list[int], first: int) -> tuple[list[Document], Encoded]:
    """Documents whose tokens and bytes tell them apart."""
    rows = [np.arange(2, 2 + length, dtype=np.uint16) + 100 * (first + at) for at, length in enumerate(lengths)]
    documents = [
        Document(f"document {first + at}", "", 3 * n, bytes([first + at] * 32)) for at, n in enumerate(lengths)
    ]
    ids = np.concatenate([*rows, np.zeros(0, np.uint16)])
    return documents, Encoded(ids, np.full(len(ids), 3, np.uint16), np.array(lengths, np.int64))


def write(data: Path, state: Path, lengths: list[int], shard_tokens: int, cuts: list[int], stop: int | None = None):
    """Write documents in batches that end at `cuts`; an interrupted one stops before batch `stop`."""
    data.mkdir(parents=True, exist_ok=True)
    state.mkdir(exist_ok=True)
    writer = SplitWriter(data, state, "val", shard_tokens, sidecar=True)
    edges = sorted({writer.taken, len(lengths), *(cut for cut in cuts if writer.taken < cut < len(lengths))})
    for number, (first, last) in enumerate(pairwise(edges)):
        if number == stop:
            return writer
        writer.add(first, *batch(lengths[first:last], first))
    writer.close()
    return writer


def tree(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@INTERRUPTED
@given(lengths=LENGTHS, shard_tokens=st.integers(2, 60), cuts=st.lists(st.integers(1, 12), max_size=3))
def test_the_stream_is_cut_at_shard_tokens_without_padding(lengths, shard_tokens, cuts, tmp_path_factory):
    data = tmp_path_factory.mktemp("cut")
    writer = write(data / "data", data / "state", lengths, shard_tokens, cuts)
    tokens, counts = ([read_shard(p).tolist() for p in writer.files(name)] for name in ("val", "val_bytes"))
    stream = [token for at, n in enumerate(lengths) if n for token in (1, *range(100 * at + 2, 100 * at + 2 + n))]
    assert [len(shard) for shard in tokens[:-1]] == [shard_tokens] * (len(tokens) - 1)
    assert list(chain(*tokens)) == stream and 0 < len(tokens[-1]) <= shard_tokens
    assert list(chain(*counts)) == [0 if token == 1 else 3 for token in stream]
    index = DocumentIndex(data / "data", "val")
    assert index.rows["tokens"].tolist() == [n for n in lengths if n]
    assert index.rows["bytes"].tolist() == [3 * n for n in lengths if n]
    assert list(index.names()) == [f"document {at}" for at, n in enumerate(lengths) if n]
    assert writer.no_token_left == lengths.count(0)


@INTERRUPTED
@given(
    lengths=LENGTHS,
    shard_tokens=st.integers(2, 60),
    cuts=st.lists(st.integers(1, 12), max_size=3),
    stops=st.lists(st.integers(0, 3), max_size=3),
)
def test_any_interruptions_leave_the_same_bytes(lengths, shard_tokens, cuts, stops, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    whole = write(folder / "whole", folder / "whole state", lengths, shard_tokens, [])
    for stop in stops:
        write(folder / "data", folder / "state", lengths, shard_tokens, cuts, stop)
    again = write(folder / "data", folder / "state", lengths, shard_tokens, cuts)
    assert tree(folder / "data") == tree(folder / "whole")
    assert again.no_token_left == whole.no_token_left


def test_what_was_written_after_the_last_finished_shard_is_taken_away(tmp_path):
    lengths = [30, 30, 30, 5]
    write(tmp_path / "whole", tmp_path / "whole state", lengths, 20, [])
    write(tmp_path / "data", tmp_path / "state", lengths, 20, [2], stop=1)
    (tmp_path / "data" / "val_000003.bin").write_bytes(b"half")
    (tmp_path / "state" / "val.rows").open("ab").write(b"torn")
    (tmp_path / "state" / "val.names").open("ab").write(b'"torn')
    write(tmp_path / "data", tmp_path / "state", lengths, 20, [])
    assert tree(tmp_path / "data") == tree(tmp_path / "whole")


def test_a_finished_shard_that_is_damaged_is_a_sentence(tmp_path):
    write(tmp_path / "data", tmp_path / "state", [30, 30], 20, [1], stop=1)
    path = tmp_path / "data" / "val_000000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="is truncated"):
        write(tmp_path / "data", tmp_path / "state", [30, 30], 20, [])

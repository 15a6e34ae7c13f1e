"""The index of shards: any stream, cut anywhere into shards and chunks, gives the documents of the whole."""

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.console import Silent
from pgolf.data.dataset import table_bytes
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.published import index as published_index
from pgolf.data.published.checks import caseops_ids
from pgolf.data.published.index import charged_bytes, index_shards
from pgolf.data.shards import write_shard
from pgolf.errors import UserError

from ..corpus import ON_DISK
from ..publication import front_end

ENCODERS = {caseops: front_end(caseops) for caseops in (False, True)}
OPERATORS = caseops_ids(ENCODERS[True])
IDS = st.sampled_from([1, *OPERATORS, OPERATORS[-1], OPERATORS[-1], 20, 300, 350, 399])
STREAMS = st.lists(IDS, max_size=60).map(lambda ids: np.array([1, 300, *ids, 301], np.uint16))


def by_hand(encoder: FrontEnd, stream: np.ndarray) -> list[int]:
    """Bytes of each token, one after another."""
    if encoder.transform is None:
        return table_bytes(encoder, stream).tolist()
    counts, escaped = [], False
    for token in stream.tolist():
        operator = token in OPERATORS
        counts.append(3 * escaped if operator else len(encoder.tokenizer.piece_bytes[token]))
        escaped = token == OPERATORS[-1] and not escaped
    return counts


@ON_DISK
@given(stream=STREAMS, cuts=st.lists(st.integers(1, 61), max_size=4), caseops=st.booleans(), chunk=st.integers(1, 30))
def test_shards_and_chunks_change_nothing(stream, cuts, caseops, chunk):
    encoder = ENCODERS[caseops]
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(published_index, "CHUNK_TOKENS", chunk)
        files = []
        for number, (start, end) in enumerate(pairwise(edges)):
            files.append(Path(folder) / f"shard_{number:06d}.bin")
            write_shard(files[-1], stream[start:end])
        rows = index_shards(encoder, files, Silent(), "reading")
        assert charged_bytes(encoder, stream).tolist() == by_hand(encoder, stream)
    counts, starts = np.array(by_hand(encoder, stream)), np.flatnonzero(stream == 1)
    documents = [ids[1:] for ids in np.split(stream, starts[1:])]
    assert rows["tokens"].tolist() == [len(ids) for ids in documents]
    assert rows["bytes"].tolist() == np.add.reduceat(counts, starts).tolist()
    assert [row.tobytes() for row in rows["sha256"]] == [hashlib.sha256(ids.tobytes()).digest() for ids in documents]


@pytest.mark.parametrize("first", [[300, 1, 300], [300, 301]])
def test_a_split_that_does_not_begin_with_a_document_is_refused(tmp_path, first):
    write_shard(tmp_path / "a.bin", np.array(first, np.uint16))
    with pytest.raises(UserError, match=r"a\.bin does not begin with a document"):
        index_shards(ENCODERS[False], [tmp_path / "a.bin"], Silent(), "reading")


def test_worker_processes_give_the_same_rows(tmp_path, monkeypatch):
    generator = np.random.default_rng(3)
    files = [tmp_path / f"shard_{number:06d}.bin" for number in range(3)]
    for path in files:
        values = generator.integers(4, 400, 500).astype(np.uint16)
        values[generator.integers(0, 500, 20)] = 1
        values[0] = 1
        write_shard(path, values)
    rows = index_shards(ENCODERS[True], files, Silent(), "reading")
    monkeypatch.setattr(published_index, "INLINE_TOKENS", 0)
    assert np.array_equal(index_shards(ENCODERS[True], files, Silent(), "reading"), rows)

"""The sequential loader reads every token of the shards once an epoch, in order, and shares them over the ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import BatchShape, SequentialLoader
from pgolf.errors import UserError

from ..corpus import ON_DISK
from .shards import different_tokens, shard_files


@ON_DISK
@given(
    shards=different_tokens(),
    world_size=st.integers(1, 4),
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    calls=st.integers(1, 12),
)
def test_the_ranks_together_read_the_endless_stream(shards, world_size, rows, length, calls, tmp_path_factory):
    stream = np.concatenate(shards)
    if not len(stream):
        return  # refused; see below
    files = shard_files(tmp_path_factory.mktemp("sequential"), shards)
    shape = BatchShape(rows * length, length)
    loaders = [SequentialLoader(files, world_size, rank, shape) for rank in range(world_size)]
    read = []
    for _ in range(calls):
        for loader in loaders:
            batch = loader.next()
            assert batch.inputs.shape == batch.targets.shape == (rows, length) and batch.cu_seqlens is None
            span = [*batch.inputs.flatten().tolist(), int(batch.targets[-1, -1])]
            assert batch.targets.flatten().tolist() == span[1:]
            read += span
    count = calls * world_size * (rows * length + 1)
    assert read == np.resize(stream, count).tolist()  # the stream, again and again
    assert {loader.epoch for loader in loaders} == {(count - 1) // len(stream)}


def test_shards_without_a_token_are_a_sentence(tmp_path):
    with pytest.raises(UserError, match="hold no token"):
        SequentialLoader(shard_files(tmp_path, [[], []]), 1, 0, BatchShape(4, 2))

"""Small shards, and each loader over them."""

import numpy as np
from hypothesis import strategies as st

from pgolf.data.loaders import (
    Batch,
    BatchShape,
    CoprimeStrideLoader,
    DocumentPackingLoader,
    SequentialLoader,
    SharedShuffledSequenceLoader,
    ShuffledSequenceLoader,
)
from pgolf.data.shards import write_shard

BOS = 1


def shard_files(directory, shards):
    files = []
    for index, shard in enumerate(shards):
        files.append(directory / f"train_{index:06d}.bin")
        write_shard(files[-1], np.asarray(shard))
    return files


@st.composite
def different_tokens(draw, smallest=0, most=4):
    """Shards whose tokens are all different: a token tells where it was read."""
    lengths = draw(st.lists(st.integers(smallest, 160), min_size=1, max_size=most))
    ends = 2 + np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@st.composite
def numbered_shards(draw, smallest=40):
    """Shards whose tokens are all different (their own position), but for BOS at drawn places."""
    shards = draw(different_tokens(smallest))
    for shard in shards:
        places = draw(st.lists(st.integers(0, len(shard) // 2), min_size=1, max_size=6, unique=True))
        shard[places] = BOS
    return shards


def spans(batch: Batch) -> list[list[int]]:
    """The tokens of each row, its last target included; inputs and targets must be one token apart."""
    assert batch.inputs[:, 1:].tolist() == batch.targets[:, :-1].tolist()
    return [[*row, last] for row, last in zip(batch.inputs.tolist(), batch.targets[:, -1].tolist(), strict=True)]


def packing(files, rank=0, world_size=2, **settings):
    shape = BatchShape(7, 5, micro_batches=4)
    return DocumentPackingLoader(files, world_size, rank, shape, **({"bucket": 4} | settings))


def shuffled(files, rank=0, world_size=2):
    return ShuffledSequenceLoader(files, world_size, rank, BatchShape(12, 6))


def shuffled_together(files, rank=0, world_size=2):
    return SharedShuffledSequenceLoader(files, world_size, rank, BatchShape(12, 6))


def sequential(files, rank=0, world_size=2):
    return SequentialLoader(files, world_size, rank, BatchShape(12, 6))


def coprime(files, rank=0, world_size=2, ramp_batches=9):
    return CoprimeStrideLoader(files, world_size, rank, BatchShape(12, 6), ramp_batches=ramp_batches)


LOADERS = {
    "document_packing": packing,
    "shuffled_sequence": shuffled,
    "shuffled_together": shuffled_together,
    "sequential": sequential,
    "coprime": coprime,
}

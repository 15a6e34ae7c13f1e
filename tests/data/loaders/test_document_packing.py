"""Packing loses tokens by the published rule only: before the first BOS of a shard, and where a step no longer fits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import Batch, BatchShape, DocumentPackingLoader
from pgolf.errors import UserError

from ..corpus import ON_DISK
from .shards import BOS, numbered_shards, packing, shard_files, spans


@ON_DISK
@given(
    shards=numbered_shards(),
    world_size=st.integers(1, 3),
    steps=st.integers(1, 2),
    tokens=st.integers(1, 8),
    by_step=st.booleans(),
)
def test_reads_each_shard_from_its_first_bos_without_gaps(shards, world_size, steps, tokens, by_step, tmp_path_factory):
    """`steps` micro-batches a rank and step; the ranks together read every token once, in order."""
    files = shard_files(tmp_path_factory.mktemp("packing"), shards)
    calls = steps if by_step else 1
    needed = calls * world_size * (tokens + 1)
    expected, usable = [], 0
    for shard in shards:
        start = int(np.flatnonzero(shard == BOS)[0])
        count = (len(shard) - start) // needed
        usable += count * calls
        expected += shard[start : start + count * needed].tolist()
    shape = BatchShape(tokens, 5, micro_batches=steps * world_size)
    how = "step" if by_step else "ranks"
    if max(len(shard) for shard in shards) < needed or not usable:
        return  # refused; see below
    loaders = [
        DocumentPackingLoader(files, world_size, rank, shape, bucket=4, spans_per_fit=how) for rank in range(world_size)
    ]
    read = []
    for _ in range(usable):
        for loader in loaders:
            batch = loader.next()
            read += spans(batch)[0]
            check_segments(batch, tokens, longest=5, bucket=4)
    assert read == expected
    loaders[0].next()
    assert loaders[0].epoch >= 1


def check_segments(batch: Batch, tokens: int, longest: int, bucket: int) -> None:
    """Boundaries cover the row, never pass `longest`, and begin a segment at every BOS."""
    assert batch.cu_seqlens is not None and batch.cu_seqlens.dtype == torch.int32
    boundaries = batch.cu_seqlens.tolist()
    assert boundaries[0] == 0 and boundaries[-1] == tokens and len(boundaries) % bucket == 0
    assert all(0 <= b - a <= longest for a, b in pairwise(boundaries))
    starts = np.flatnonzero(batch.inputs[0].numpy() == BOS)
    assert set(starts.tolist()) <= set(boundaries)


@ON_DISK
@given(shards=numbered_shards(smallest=120), tokens=st.integers(1, 6), calls=st.integers(1, 12))
def test_one_rank_that_fits_whole_steps_sees_the_spans_of_eight_ranks(shards, tokens, calls, tmp_path_factory):
    files = shard_files(tmp_path_factory.mktemp("spans"), shards)
    shape = BatchShape(tokens, 0, micro_batches=8)
    ranks = [DocumentPackingLoader(files, 8, rank, shape, spans_per_fit="ranks") for rank in range(8)]
    alone = DocumentPackingLoader(files, 1, 0, shape, spans_per_fit="step")
    for _ in range(calls):
        for loader in ranks:
            assert spans(loader.next()) == spans(alone.next())


def test_shards_that_are_too_short_are_a_sentence(files):
    with pytest.raises(UserError, match="no training shard is long enough: 2 spans of 101 tokens"):
        DocumentPackingLoader(files, 2, 0, BatchShape(100, 0, micro_batches=2))


def test_a_first_bos_too_far_back_is_a_sentence(tmp_path):
    shard = np.full(100, 5)
    shard[95] = BOS
    loader = DocumentPackingLoader(shard_files(tmp_path, [shard]), 1, 0, BatchShape(20, 0))
    with pytest.raises(UserError, match="no training shard has 21 tokens after its first BOS"):
        loader.next()


def test_a_shard_without_bos_is_a_sentence(tmp_path):
    files = shard_files(tmp_path, [np.full(100, 5)])
    with pytest.raises(UserError, match="has no document start"):
        DocumentPackingLoader(files, 1, 0, BatchShape(20, 0))


def test_impossible_settings_are_refused(files):
    with pytest.raises(ValueError, match="4 micro-batches of a step must be a multiple of the 3 ranks"):
        packing(files, world_size=3)
    with pytest.raises(ValueError, match="bucket=0"):
        packing(files, bucket=0)

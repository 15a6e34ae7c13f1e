"""Both loaders lose or repeat tokens by the published rule only, and resume exactly."""

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import Batch, DocumentPackingLoader, ShuffledSequenceLoader
from pgolf.data.shards import write_shard
from pgolf.errors import UserError

from .corpus import ON_DISK

BOS = 1


def shard_files(directory, shards):
    files = []
    for index, shard in enumerate(shards):
        files.append(directory / f"train_{index:06d}.bin")
        write_shard(files[-1], np.asarray(shard))
    return files


@st.composite
def numbered_shards(draw, smallest=40):
    """Shards whose tokens are all different (their own position), but for BOS at drawn places."""
    shards, first = [], 2
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(smallest, 160))
        shard = np.arange(first, first + length)
        places = draw(st.lists(st.integers(0, length // 2), min_size=1, max_size=6, unique=True))
        shard[places] = BOS
        shards.append(shard)
        first += length
    return shards


def whole_row(batch: Batch) -> list[int]:
    return [*batch.inputs[0].tolist(), int(batch.targets[0, -1])]


@ON_DISK
@given(shards=numbered_shards(), world_size=st.integers(1, 3), tokens=st.integers(1, 12))
def test_packing_reads_each_shard_from_its_first_bos_without_gaps(shards, world_size, tokens, tmp_path_factory):
    files = shard_files(tmp_path_factory.mktemp("packing"), shards)
    needed = world_size * (tokens + 1)
    expected, usable = [], 0
    for shard in shards:
        start = int(np.flatnonzero(shard == BOS)[0])
        count = (len(shard) - start) // needed
        usable += count
        expected += shard[start : start + count * needed].tolist()
    loaders = [
        DocumentPackingLoader(files, world_size, rank, micro_batch_tokens=tokens, max_document_tokens=5, bucket=4)
        for rank in range(world_size)
    ]
    read = []
    for _ in range(usable):
        for loader in loaders:
            assert loader.epoch == 0
            batch = loader.next()
            read += whole_row(batch)
            assert batch.inputs[0, 1:].tolist() == batch.targets[0, :-1].tolist()
            check_segments(batch, tokens, longest=5, bucket=4)
    assert read == expected
    loaders[0].next()
    assert loaders[0].epoch == 1


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
def test_one_rank_with_eight_spans_per_fit_sees_the_spans_of_eight_ranks(shards, tokens, calls, tmp_path_factory):
    files = shard_files(tmp_path_factory.mktemp("spans"), shards)
    settings = {"micro_batch_tokens": tokens, "max_document_tokens": 0}
    ranks = [DocumentPackingLoader(files, 8, rank, **settings) for rank in range(8)]
    alone = DocumentPackingLoader(files, 1, 0, **settings, spans_per_fit=8)
    for _ in range(calls):
        for loader in ranks:
            assert whole_row(loader.next()) == whole_row(alone.next())


@ON_DISK
@given(shards=numbered_shards(), world_size=st.integers(1, 2), length=st.integers(1, 20))
def test_shuffling_draws_every_sequence_once_an_epoch(shards, world_size, length, tmp_path_factory):
    shards = [np.where(shard == BOS, 60_000 + index, shard) for index, shard in enumerate(shards)]
    shards = (shards * 2)[: max(world_size, len(shards))]
    files = shard_files(tmp_path_factory.mktemp("shuffled"), shards)
    for rank in range(world_size):
        loader = ShuffledSequenceLoader(files, world_size, rank, micro_batch_tokens=length, sequence_tokens=length)
        own = shards[rank::world_size]
        offered = [
            shard[start : start + length + 1].tolist()
            for shard, starts in zip(own, loader.starts, strict=True)
            for start in starts
        ]
        for shard, starts in zip(own, loader.starts, strict=True):
            ordered = np.sort(starts)
            assert (np.diff(ordered) == length).all()  # No gap, no overlap.
            assert ordered[0] < length and len(shard) - (ordered[-1] + length) <= length
        drawn = [whole_row(loader.next()) for _ in offered]
        assert sorted(drawn) == sorted(offered)
        assert loader.epoch == 0
        loader.next()
        assert loader.epoch == 1


def packing(files, rank=0, **overrides):
    settings = {"micro_batch_tokens": 7, "max_document_tokens": 5, "bucket": 4, "spans_per_fit": 4}
    return DocumentPackingLoader(files, 2, rank, **(settings | overrides))


def shuffled(files, rank=0, **overrides):
    settings = {"micro_batch_tokens": 12, "sequence_tokens": 6}
    return ShuffledSequenceLoader(files, 2, rank, **(settings | overrides))


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(3)
    return shard_files(tmp_path, [np.r_[BOS, generator.integers(1, 9, size)] for size in (90, 150, 70)])


@pytest.mark.parametrize("make", [packing, shuffled])
@pytest.mark.parametrize("before", [0, 1, 3, 10, 41])
def test_resume_gives_the_identical_batches(make, before, files):
    loader = make(files, rank=1)
    for _ in range(before):
        loader.next()
    saved = io.BytesIO()
    torch.save(loader.state_dict(), saved)
    expected = [loader.next() for _ in range(60)]
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert json.loads(json.dumps(state)) == state
    resumed = make(files, rank=1)
    resumed.next()
    resumed.load_state_dict(state)
    for batch in expected:
        again = resumed.next()
        assert torch.equal(batch.inputs, again.inputs)
        assert torch.equal(batch.targets, again.targets)
        if batch.cu_seqlens is not None:
            assert torch.equal(batch.cu_seqlens, again.cu_seqlens)
    assert resumed.state_dict() == loader.state_dict()


@pytest.mark.parametrize("make", [packing, shuffled])
def test_a_position_of_another_rank_or_loader_is_refused(make, files):
    state = make(files, rank=1).state_dict()
    with pytest.raises(UserError, match="its rank is 1, this run has 0"):
        make(files, rank=0).load_state_dict(state)
    other = shuffled if make is packing else packing
    with pytest.raises(UserError, match="its loader is"):
        other(files, rank=1).load_state_dict(state)


def test_shards_that_are_too_short_are_a_sentence(files):
    with pytest.raises(UserError, match="no training shard is long enough: 4 spans of 101 tokens"):
        packing(files, micro_batch_tokens=100)
    with pytest.raises(UserError, match="holds a sequence of 1001 tokens"):
        shuffled(files, micro_batch_tokens=1000, sequence_tokens=1000)


def test_a_first_bos_too_far_back_is_a_sentence(tmp_path):
    shard = np.full(100, 5)
    shard[95] = BOS
    loader = DocumentPackingLoader(shard_files(tmp_path, [shard]), 1, 0, micro_batch_tokens=20, max_document_tokens=0)
    with pytest.raises(UserError, match="no training shard has 21 tokens after its first BOS"):
        loader.next()


def test_a_shard_without_bos_is_a_sentence(tmp_path):
    files = shard_files(tmp_path, [np.full(100, 5)])
    with pytest.raises(UserError, match="has no document start"):
        DocumentPackingLoader(files, 1, 0, micro_batch_tokens=20, max_document_tokens=0)


def test_more_ranks_than_shards_is_a_sentence_for_the_shuffled_loader(files):
    with pytest.raises(UserError, match="rank 3 of 4 owns no training shard: there are only 3"):
        ShuffledSequenceLoader(files, 4, 3, micro_batch_tokens=6, sequence_tokens=6)


def test_impossible_settings_are_refused(files):
    with pytest.raises(ValueError, match="multiple of the 2 ranks"):
        packing(files, spans_per_fit=3)
    with pytest.raises(ValueError, match="multiple of sequence_tokens"):
        shuffled(files, micro_batch_tokens=13)
    with pytest.raises(ValueError, match="rank 2 does not exist"):
        packing(files, rank=2)
    with pytest.raises(UserError, match="no training shard"):
        packing([])

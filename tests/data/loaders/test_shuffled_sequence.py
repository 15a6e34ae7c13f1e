"""Every sequence of a rank's shards is drawn once an epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import BatchShape, ShuffledSequenceLoader
from pgolf.errors import UserError
from pgolf.train.positions import position_of

from ..corpus import ON_DISK
from .shards import different_tokens, shard_files, shuffled, shuffled_together, spans


@ON_DISK
@given(shards=different_tokens(smallest=40), world_size=st.integers(1, 3), length=st.integers(1, 20))
def test_every_sequence_once_an_epoch_and_no_shard_on_two_ranks(shards, world_size, length, tmp_path_factory):
    shards = (shards * 3)[: max(world_size, len(shards))]
    files = shard_files(tmp_path_factory.mktemp("shuffled"), shards)
    owned = []
    for rank in range(world_size):
        loader = ShuffledSequenceLoader(files, world_size, rank, BatchShape(length, length))
        owned += loader.files
        own = shards[rank::world_size]
        offered = [
            shard[start : start + length + 1].tolist()
            for shard, starts in zip(own, loader.starts, strict=True)
            for start in starts
        ]
        for shard, starts in zip(own, loader.starts, strict=True):
            ordered = np.sort(starts)
            assert (np.diff(ordered) == length).all()  # no gap, no overlap
            assert ordered[0] < length and len(shard) - (ordered[-1] + length) <= length
        drawn = [spans(loader.next())[0] for _ in offered]
        assert sorted(drawn) == sorted(offered)
        assert loader.epoch == 0
        loader.next()
        assert loader.epoch == 1
    assert sorted(owned) == files


def test_more_ranks_than_shards_is_a_sentence(files):
    with pytest.raises(UserError, match="rank 3 of 4 owns no training shard: there are only 3"):
        shuffled(files, rank=3, world_size=4)


def test_shards_that_are_too_short_are_a_sentence(files):
    with pytest.raises(UserError, match="holds a sequence of 1001 tokens"):
        ShuffledSequenceLoader(files, 1, 0, BatchShape(1000, 1000))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_out_the_stream_of_one(files, world_size):
    alone = shuffled(files, 0, 1)
    ranks = [shuffled_together(files, rank, world_size) for rank in range(world_size)]
    for _ in range(40):
        for rank in ranks:
            assert torch.equal(rank.next().inputs, alone.next().inputs)


def test_a_shared_stream_goes_on_with_another_number_of_ranks(files):
    ranks = [shuffled_together(files, rank, 2) for rank in range(2)]
    for _ in range(7):
        for rank in ranks:
            rank.next()
    one, two = shuffled_together(files, 0, 1), shuffled_together(files, 1, 2)
    one.load_state_dict(position_of([rank.state_dict() for rank in ranks], one.state_dict()))
    two.load_state_dict(position_of([rank.state_dict() for rank in ranks], two.state_dict()))
    first, second = one.next(), one.next()
    assert torch.equal(ranks[0].next().inputs, first.inputs)
    assert torch.equal(ranks[1].next().inputs, second.inputs) and torch.equal(two.next().inputs, second.inputs)

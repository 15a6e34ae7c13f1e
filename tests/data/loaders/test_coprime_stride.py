"""Within a round through a shard no block is read twice or left out, on any number of ranks; many shards a batch."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import BatchShape, CoprimeStrideLoader
from pgolf.data.loaders.coprime_stride import seed_of
from pgolf.errors import UserError

from ..corpus import ON_DISK
from .shards import coprime, different_tokens, shard_files, spans

LENGTH = 5


@ON_DISK
@given(shards=different_tokens(smallest=LENGTH + 1), world_size=st.integers(1, 4), calls=st.integers(1, 40))
def test_rounds_visit_every_block_once(shards, world_size, calls, tmp_path_factory):
    """Windows of one round are all blocks of one phase; the last round of a shard may be unfinished."""
    files = shard_files(tmp_path_factory.mktemp("coprime"), shards)
    shape = BatchShape(2 * LENGTH, LENGTH)
    loader = CoprimeStrideLoader(files, world_size, 0, shape, ramp_batches=5)
    rounds = defaultdict(list)
    for shard, walk in loader.walks.items():
        rounds[shard].append((walk, []))
    take = loader._take

    def watched(shard):
        if loader.walks[shard].left == 0:
            window = take(shard)
            rounds[shard].append((loader.walks[shard], []))
        else:
            window = take(shard)
        rounds[shard][-1][1].append(window[1])
        return window

    loader._take = watched
    for _ in range(calls):
        loader.draw()
    for shard, walks in rounds.items():
        for index, (walk, starts) in enumerate(walks):
            assert math.gcd(walk.stride, walk.blocks) == 1
            assert walk.phase < LENGTH
            assert 0 <= len(shards[shard]) - 1 - walk.phase - walk.blocks * LENGTH < LENGTH
            every = {walk.phase + block * LENGTH for block in range(walk.blocks)}
            assert set(starts) <= every and len(set(starts)) == len(starts)
            assert index == len(walks) - 1 or set(starts) == every


@ON_DISK
@given(shards=different_tokens(smallest=LENGTH + 1), world_size=st.integers(1, 4), calls=st.integers(1, 12))
def test_ranks_share_out_what_is_drawn(shards, world_size, calls, tmp_path_factory):
    files = shard_files(tmp_path_factory.mktemp("coprime"), shards)
    shape = BatchShape(3 * LENGTH, LENGTH)
    ranks = [CoprimeStrideLoader(files, world_size, rank, shape, ramp_batches=5) for rank in range(world_size)]
    drawer = CoprimeStrideLoader(files, world_size, 0, shape, ramp_batches=5)
    for _ in range(calls):
        expected = [shards[shard][first : first + LENGTH + 1].tolist() for shard, first in drawer.draw()]
        rows = [spans(loader.next()) for loader in ranks]
        assert [rows[i % world_size][i // world_size] for i in range(len(expected))] == expected


def test_batches_mix_more_and_more_shards_and_no_shard_more_than_its_turns(tmp_path):
    files = shard_files(tmp_path, [np.arange(2, 4000)] * 40)
    loader = CoprimeStrideLoader(files, 1, 0, BatchShape(48 * 4, 4), ramp_batches=100)
    for batch in range(101):
        windows = Counter(shard for shard, _ in loader.draw())
        assert sum(windows.values()) == 48
        assert len(windows) == round(8 + batch / 100 * (32 - 8))
    assert len(set(loader.draw())) == 48


def test_large_shards_come_more_often(tmp_path):
    files = shard_files(tmp_path, [np.arange(2, 402)] * 12 + [np.arange(2, 40002)])
    loader = CoprimeStrideLoader(files, 1, 0, BatchShape(12 * 4, 4), ramp_batches=10**9)
    drawn = Counter(shard for _ in range(60) for shard, _ in loader.draw())
    assert drawn.most_common(1)[0][0] == 12 and drawn[12] > 5 * drawn.most_common(2)[1][1]


def test_a_moved_data_set_gives_the_same_order_and_another_one_does_not(files, tmp_path):
    (tmp_path / "moved").mkdir()
    moved = [tmp_path / "moved" / path.name for path in files]
    for old, new in zip(files, moved, strict=True):
        new.write_bytes(old.read_bytes())
    here, there = coprime(files), coprime(moved)
    assert [spans(here.next()) for _ in range(9)] == [spans(there.next()) for _ in range(9)]
    assert seed_of(files) == seed_of(moved) != seed_of(files[:2])


def test_short_shards_are_never_drawn_and_only_short_ones_are_a_sentence(tmp_path):
    files = shard_files(tmp_path, [[7] * 6, list(range(10, 80)), []])
    loader = coprime(files)
    assert {shard for _ in range(30) for shard, _ in loader.draw()} == {1}
    with pytest.raises(UserError, match="no training shard holds a sequence of 7 tokens"):
        coprime([files[0], files[2]])
    with pytest.raises(ValueError, match="ramp_batches=0"):
        coprime(files, ramp_batches=0)

"""Orders of shards: a curriculum by entropy, a coprime stride, and loaders that follow them."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.loaders import BatchShape, DocumentPackingLoader, SequentialLoader, ShardOrder
from pgolf.data.loaders.order import compressed_part, coprime_stride, strided
from pgolf.errors import UserError

from .shards import shard_files


@given(count=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_coprime_stride_visits_each_once(count, seed):
    stride = coprime_stride(count, seed)
    visited = strided(range(count), stride)
    assert sorted(visited) == list(range(count)) and math.gcd(stride, count) == 1
    assert all((one + stride) % count == other for one, other in pairwise(visited))


def test_strides_differ_by_seed():
    assert len({coprime_stride(101, seed) for seed in range(20)}) > 10


@pytest.fixture
def files(tmp_path):
    """Shards of 600 tokens that grow easier: 256 different ones, 16, 4, 1 (each begins with BOS)."""
    generator = np.random.default_rng(0)
    return shard_files(tmp_path, [np.r_[1, 2 + generator.integers(0, kinds, 599)] for kinds in (256, 16, 4, 1)])


def test_a_curriculum_begins_with_what_compresses_best(files):
    order = ShardOrder(by="entropy", stride_seed=None, sample_tokens=10**6)
    assert order(files) == files[::-1]
    parts = [compressed_part(path, 10**6) for path in files]
    assert parts == sorted(parts, reverse=True) and 0.0 < parts[-1] < 0.1
    strided_order = ShardOrder(by="entropy", stride_seed=3, sample_tokens=10**6)
    assert strided_order(files) == strided(files[::-1], coprime_stride(4, 3))


@pytest.mark.parametrize("loader", [SequentialLoader, DocumentPackingLoader])
def test_loaders_read_in_the_order_and_go_on_in_it_alone(files, loader):
    order, shape = ShardOrder(by="entropy", stride_seed=None, sample_tokens=50), BatchShape(100, 50)
    by_name, other = loader(files, 1, 0, shape), loader(files, 1, 0, shape, order=order)
    assert other.files == files[::-1] and set(other.next().targets.flatten().tolist()) == {2}
    assert len(set(by_name.next().targets.flatten().tolist())) > 50
    again = loader(files[::-1], 1, 0, shape, order=order)
    again.load_state_dict(other.state_dict())
    assert again.next().inputs.equal(other.next().inputs)
    with pytest.raises(UserError, match="its files is"):
        loader(files, 1, 0, shape).load_state_dict(other.state_dict())


def test_a_sample_has_tokens():
    with pytest.raises(ValueError, match="sample_tokens=0"):
        ShardOrder(by="name", stride_seed=1, sample_tokens=0)

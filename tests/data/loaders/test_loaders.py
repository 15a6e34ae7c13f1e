"""What all loaders promise: they resume to the token, refuse another run's position, and refuse impossible batches."""

import io
import json

import pytest
import torch

from pgolf.data.loaders import BatchShape, Prefetch
from pgolf.errors import UserError

from .shards import LOADERS, packing

EVERY = pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)


@EVERY
@pytest.mark.parametrize("before", [0, 1, 3, 10, 41])
@pytest.mark.parametrize("ahead", [False, True], ids=["direct", "prefetched"])
def test_resume_gives_the_identical_batches(make, before, ahead, files):
    def fresh():
        return Prefetch(make(files, rank=1), depth=3) if ahead else make(files, rank=1)

    loader, resumed = fresh(), fresh()
    for _ in range(before):
        loader.next()
    saved = io.BytesIO()
    torch.save(loader.state_dict(), saved)
    expected = [loader.next() for _ in range(60)]
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    assert json.loads(json.dumps(state)) == state
    resumed.next()
    resumed.load_state_dict(state)
    for batch in expected:
        for old, new in zip(batch, resumed.next(), strict=True):
            assert (old is None and new is None) or torch.equal(old, new)
    assert resumed.state_dict() == loader.state_dict()
    if ahead:
        loader.close()
        resumed.close()


@EVERY
def test_a_position_of_another_rank_loader_or_data_set_is_refused(make, files):
    state = make(files, rank=1).state_dict()
    with pytest.raises(UserError, match="its rank is 1, this run has 0"):
        make(files, rank=0).load_state_dict(state)
    other = next(one for one in LOADERS.values() if one is not make)
    with pytest.raises(UserError, match="its loader is"):
        other(files, rank=1).load_state_dict(state)
    with pytest.raises(UserError, match="its (files|tokens) is"):
        make([*files[:1], *files[2:]], rank=1).load_state_dict(state)


@EVERY
def test_no_shards_and_ranks_that_do_not_exist_are_refused(make, files):
    with pytest.raises(UserError, match="no training shard"):
        make([])
    with pytest.raises(ValueError, match="rank 2 does not exist"):
        make(files, rank=2)


def test_whole_rows_must_fill_a_micro_batch():
    assert BatchShape(12, 4).rows == 3
    for tokens, length in ((13, 4), (12, 0)):
        with pytest.raises(ValueError, match="multiple of sequence_tokens"):
            _ = BatchShape(tokens, length).rows
    with pytest.raises(ValueError, match="must be positive"):
        BatchShape(0, 4)


def test_the_order_of_the_file_list_does_not_matter(files):
    one, two = packing(files), packing(files[::-1])
    for _ in range(20):
        assert torch.equal(one.next().inputs, two.next().inputs)

"""Drawing ahead changes nothing but the waiting, and leaves no thread behind."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.data.loaders import Batch, Prefetch
from pgolf.errors import UserError


class Counting:
    """Batches 0, 1, 2, ...; fails at batch `fail_at`; `drawn` is set when `ahead` of them were drawn."""

    def __init__(self, fail_at=None, ahead=None):
        self.count, self.fail_at, self.ahead = 0, fail_at, ahead
        self.drawn = threading.Event()

    def next(self) -> Batch:
        if self.count == self.fail_at:
            raise UserError("the shard is truncated.")
        self.count += 1
        if self.count == self.ahead:
            self.drawn.set()
        number = torch.tensor([[self.count - 1]])
        return Batch(number, number, None)

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        if state["count"] < 0:
            raise UserError("the saved data position cannot be resumed.")
        self.count = state["count"]


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@settings(deadline=None)
@given(depth=st.integers(1, 5), plan=st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=30))
def test_the_batches_and_positions_are_those_of_the_loader(depth, plan):
    """A plan of draws (None) and jumps to a position."""
    plain = Counting()
    with Prefetch(Counting(), depth=depth) as ahead:
        for jump in plan:
            if jump is None:
                assert int(ahead.next().inputs) == int(plain.next().inputs)
            else:
                ahead.load_state_dict({"count": jump})
                plain.load_state_dict({"count": jump})
            assert ahead.state_dict() == plain.state_dict()
    assert not threads()


def test_it_draws_depth_batches_ahead_and_no_more():
    loader = Counting(ahead=4)
    with Prefetch(loader, depth=3) as ahead:
        ahead.next()
        assert loader.drawn.wait(timeout=60)  # 1 taken and 3 ahead
        assert ahead.state_dict() == {"count": 1}
        assert loader.count == 4


def test_an_error_surfaces_where_its_batch_would_have_come_and_stays():
    with Prefetch(Counting(fail_at=2), depth=4) as ahead:
        assert [int(ahead.next().inputs) for _ in range(2)] == [0, 1]
        for _ in range(2):
            with pytest.raises(UserError, match="the shard is truncated"):
                ahead.next()
        assert ahead.state_dict() == {"count": 2}
        ahead.load_state_dict({"count": 7})
        assert int(ahead.next().inputs) == 7
    assert not threads()


def test_a_refused_position_leaves_it_closed():
    with Prefetch(Counting(), depth=2) as ahead:
        ahead.next()
        with pytest.raises(UserError, match="cannot be resumed"):
            ahead.load_state_dict({"count": -1})
        with pytest.raises(RuntimeError, match="closed"):
            ahead.next()


def test_closing_ends_the_thread_whatever_it_is_doing():
    ahead = Prefetch(Counting(), depth=1)
    ahead.close()  # nothing was drawn yet
    ahead.next()
    assert len(threads()) == 1
    ahead.close()
    ahead.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.next()
    with pytest.raises(ValueError, match="depth=0"):
        Prefetch(Counting(), depth=0)

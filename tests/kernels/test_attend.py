"""attend(): every back end gives the reference's answer, and says why it cannot."""

import itertools
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import UserError
from pgolf.kernels import attend
from pgolf.kernels.packing import Packing

CPU = torch.device("cpu")


def brute_force(q, k, v, boundaries):
    """Softmax attention written out in fp64 for each segment and query."""
    groups = q.shape[2] // k.shape[2]
    out = torch.zeros_like(q, dtype=torch.float64)
    for start, end in itertools.pairwise(boundaries):
        for t in range(start, end):
            for h in range(q.shape[2]):
                keys, values = (x[0, start : t + 1, h // groups].double() for x in (k, v))
                weights = torch.softmax(keys @ q[0, t, h].double() / q.shape[-1] ** 0.5, dim=0)
                out[0, t, h] = weights @ values
    return out


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(lambda x: sum(x) > 0), seed=st.integers(0, 99)
)
def test_packed_reference_equals_brute_force(lengths, seed):
    boundaries = [0]
    for length in lengths:
        boundaries.append(boundaries[-1] + length)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, boundaries[-1], heads, 8, generator=generator) for heads in (4, 2, 2))
    packing = Packing.from_cu_seqlens(torch.tensor(boundaries))
    got = attend.sdpa(q, k, v, packing)
    torch.testing.assert_close(got.double(), brute_force(q, k, v, boundaries), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("boundaries", [[1, 4], [0, 4, 3], [0]])
def test_packing_refuses_what_is_not_a_list_of_boundaries(boundaries):
    with pytest.raises(ValueError, match="cu_seqlens"):
        Packing.from_cu_seqlens(torch.tensor(boundaries))


def test_auto_picks_a_back_end_that_works_here():
    name, function = attend.select("auto", CPU)
    assert attend.probe(name, CPU) == ""
    assert function is attend.sdpa or name != "sdpa"


def test_a_back_end_that_is_missing_or_unknown_is_refused_by_name():
    with pytest.raises(UserError, match="flash3.*not installed"):
        attend.select("flash3", CPU)
    with pytest.raises(UserError, match="unknown.*auto"):
        attend.select("flash9", CPU)


def _fake_flash(monkeypatch, function):
    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)


def test_variable_length_dispatch_gives_the_reference_answer_for_packed_and_dense_rows(monkeypatch):
    def varlen(q, k, v, cu_q, cu_k, max_q, max_k, causal):
        assert causal and max_q == max_k and torch.equal(cu_q, cu_k)
        return attend.sdpa(q[None], k[None], v[None], Packing.from_cu_seqlens(cu_q))[0], None

    _fake_flash(monkeypatch, varlen)
    assert attend.select("auto", CPU)[0] == "flash3"
    function = attend.select("flash3", CPU)[1]
    q, k, v = (torch.randn(3, 10, heads, 8) for heads in (4, 2, 2))
    torch.testing.assert_close(function(q, k, v, None), attend.sdpa(q, k, v, None))


def test_a_back_end_that_gives_another_answer_is_not_used(monkeypatch):
    _fake_flash(monkeypatch, lambda q, *rest, **names: torch.zeros_like(q))
    assert "disagrees" in attend.probe("flash3", CPU)
    assert attend.select("auto", CPU)[0] != "flash3"


def test_a_back_end_that_dies_at_launch_is_not_used(monkeypatch):
    def dies(*arguments, **names):
        raise RuntimeError("no kernel image for this device")

    _fake_flash(monkeypatch, dies)
    assert "no kernel image" in attend.probe("flash3", CPU)

"""Clipping policies."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.optim.clip import GlobalNorm, LocalNorm, LyapunovNorm, shorten, total_norm


@pytest.mark.parametrize("limit", [0.3, 1e6])
def test_clipping_gives_torchs_bits(limit):
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2))]
    theirs = [torch.nn.Parameter(torch.zeros_like(one)) for one in ours]
    for x, y in zip(ours, theirs, strict=True):
        x.grad = torch.randn(x.shape, generator=generator)
        y.grad = x.grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, limit)
    gradients = [x.grad for x in ours]
    norm = total_norm(gradients)
    shorten(gradients, norm, GlobalNorm(norm=limit).limit(norm))
    assert torch.equal(norm, expected)
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(ours, theirs, strict=True))


def test_gradients_of_two_dtypes_are_shortened_together():
    gradients = [torch.full((4,), 3.0), torch.full((4,), 4.0, dtype=torch.bfloat16)]
    norm = total_norm(gradients)
    shorten(gradients, norm, 1.0)
    assert float(norm) == pytest.approx(10.0)
    assert float(total_norm(gradients)) == pytest.approx(1.0, rel=1e-2)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40))
def test_adaptive_limit_by_its_formula(norms):
    clip = LyapunovNorm(norm=0.3, threshold=0.05, window=20, floor=0.1)
    for count, norm in enumerate(norms, 1):
        limit = clip.limit(torch.tensor(norm, dtype=torch.float64))
        window = norms[max(0, count - 20) : count]
        rates = [math.log(after / before) for before, after in itertools.pairwise(window)]
        rate = sum(rates) / len(rates) if len(window) >= 4 else 0.0
        if abs(rate - 0.05) > 1e-9:
            expected = max(0.3 * math.exp(-5 * rate), 0.1) if rate > 0.05 else 0.3
            assert limit == pytest.approx(expected)


def test_adaptive_limit_continues_from_its_state_and_ignores_what_is_not_a_number():
    clip, again = LyapunovNorm(norm=1.0), LyapunovNorm(norm=1.0)
    for norm in (1.0, 2.0, float("inf"), 4.0):
        assert clip.limit(torch.tensor(norm)) == 1.0
    again.load_state_dict(clip.state_dict())
    assert again.limit(torch.tensor(8.0)) == clip.limit(torch.tensor(8.0)) == 0.1


def test_policies_say_whose_gradient_they_clip():
    assert LocalNorm(norm=0.3).local and not GlobalNorm(norm=0.3).local and not LyapunovNorm(norm=0.3).local


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalNorm(norm=0.0), "norm=0.0"),
        (lambda: LyapunovNorm(norm=0.05), "floor=0.1.*at most norm=0.05"),
        (lambda: GlobalNorm(norm=float("nan")), "norm=nan"),
        (lambda: LyapunovNorm(norm=0.3, window=3), "window=3"),
        (lambda: LyapunovNorm(norm=0.3, threshold=-0.1), "threshold=-0.1"),
    ],
)
def test_impossible_policies_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

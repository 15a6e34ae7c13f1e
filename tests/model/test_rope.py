"""Frequencies of the rotary embedding other than the usual: sliced from a longer table, stretched as YaRN does."""

import pytest
import torch

from pgolf.model.rope import Rotary, SlicedFrequencies, YarnFrequencies


def angles(rope, position=1):
    cos, sin = rope.tables(position + 1, torch.device("cpu"))
    return torch.atan2(sin[position], cos[position])


def test_partial_rotation_has_frequencies_of_its_own_or_the_first_of_the_whole_head():
    """Two published forms of 16 of 64 dimensions: the first spans all frequencies, the second the fast ones alone."""
    own, sliced = Rotary(dims=16, base=1e4), Rotary(dims=16, base=1e4, frequencies=SlicedFrequencies(table_dims=64))
    j = torch.arange(8)
    torch.testing.assert_close(angles(own), 1e4 ** (-2 * j / 16))
    torch.testing.assert_close(angles(sliced), 1e4 ** (-2 * j / 64))
    whole = Rotary(dims=16, base=1e4, frequencies=SlicedFrequencies(table_dims=16))
    x = torch.randn(1, 9, 2, 64)
    assert torch.equal(whole(x), own(x)) and not torch.equal(sliced(x), own(x))
    assert torch.equal(sliced(x)[..., 16:], x[..., 16:])


def test_yarn_stretches_the_slow_pairs_in_training_too():
    rope = Rotary(dims=96, base=5e3, frequencies=YarnFrequencies(train_tokens=1024, max_tokens=2048, low=0.25))
    share = 2 * torch.arange(48) / 96
    ramp = ((share - 0.25) / 0.75).clamp(0, 1)
    torch.testing.assert_close(angles(rope), 5e3**-share / (ramp * (2048 / 1024 - 1) + 1))
    plain = angles(Rotary(dims=96, base=5e3))
    assert torch.equal(angles(rope)[:12], plain[:12])  # up to a quarter nothing changes
    assert 1.9 < (plain / angles(rope))[-1] < 2.0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Rotary(dims=16, base=1e4, frequencies=SlicedFrequencies(table_dims=8)), "at least dims=16"),
        (
            lambda: Rotary(dims=16, base=1e4, train_tokens=64, frequencies=SlicedFrequencies(table_dims=64)),
            "choose one",
        ),
        (lambda: YarnFrequencies(train_tokens=2048, max_tokens=1024, low=0.25), "at least train_tokens=2048"),
        (lambda: YarnFrequencies(train_tokens=1024, max_tokens=2048, low=1.0), r"low=1.0"),
    ],
)
def test_frequencies_that_cannot_be_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()

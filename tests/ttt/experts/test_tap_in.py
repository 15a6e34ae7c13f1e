"""Tap-In: the longest match, its weight, and when it stays silent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.ttt.experts.tap_in import TapIn
from tests.ttt.experts.examples import TAP_IN, following, mixed


def test_tap_in_mixes_a_point_with_the_published_weight():
    tokens = [1, 5, 6, 7, 9, 5, 6, 7]
    proposals = following(TapIn(**TAP_IN), tokens)
    assert proposals[6:] == [[(6, 1, 1, 0.0)], [(7, 2, 1, 0.0)]] and proposals[:6] == [[]] * 6
    reader = TapIn(**TAP_IN).begin()()
    for token in tokens:
        reader.observe(token)
    assert reader.propose(8) == ((9, 3, 1, 0.0),)
    assert reader.propose(4) == ((9, 3, 1, 1.0),)  # the model's window begins behind the match
    log_probs = torch.log_softmax(torch.randn(7, 40, generator=torch.Generator().manual_seed(3)), -1)
    expert = TapIn(**{**TAP_IN, "top_k": 40})
    share = 0.1 * (1 + 0.15 * 1)
    expected = (1 - share) * log_probs[6].double().exp()
    expected[7] += share
    torch.testing.assert_close(mixed(expert, tokens, log_probs)[6].double().exp(), expected, rtol=1e-5, atol=1e-7)
    unlikely = log_probs[:, :].clone()
    unlikely[6, 7] = -50.0
    unlikely = torch.log_softmax(unlikely, -1)
    assert torch.equal(mixed(TapIn(**TAP_IN), tokens, unlikely)[6], unlikely[6])  # not among the 30 likeliest
    found = mixed(expert, tokens, unlikely)[6].double().exp()
    assert found[7].item() == pytest.approx(share, rel=1e-4) and found.sum().item() == pytest.approx(1.0, abs=1e-6)
    doubtful = TapIn(**{**TAP_IN, "top_k": 40, "least_entropy": 5.0})
    assert torch.equal(mixed(doubtful, tokens, log_probs), log_probs)  # 40 tokens have at most 3.7 nats


@settings(deadline=None)
@given(st.lists(st.integers(4, 6), min_size=1, max_size=60), st.integers(1, 4))
def test_tap_in_finds_what_a_plain_search_finds(tokens, least):
    expert = TapIn(**{**TAP_IN, "min_match": least, "max_match": 5})
    for count, found in enumerate(following(expert, tokens)):
        places = {}
        for p in range(count - 2):
            length = 0
            while length < min(5, p + 1) and tokens[p - length] == tokens[count - 1 - length]:
                length += 1
            if length >= least:
                places[p] = length
        if not places:
            assert found == []
            continue
        best = max(places, key=lambda p: (places[p], -p))
        votes = sum(tokens[p + 1] == tokens[best + 1] for p in places)
        assert found == [(tokens[best + 1], places[best], votes, 0.0)]


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="min_match=30 must lie between"):
        TapIn(**{**TAP_IN, "min_match": 30})
    with pytest.raises(ValueError, match="weight=1.0"):
        TapIn(**{**TAP_IN, "weight": 1.0})

"""Experts see the past alone, whatever they do, and what they make of a distribution is one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.score.ledger import RuleBroken
from pgolf.score.mixture import Mixture, Proposals, entropy, miniature, tilted
from pgolf.score.scorer import Scorer, Window
from tests.support import ALONE, documents


class Echo:
    """Proposes the last two tokens of the document with a fixed bias, and writes down what it was told."""

    def __init__(self, strength=1.5):
        self.strength, self.told = strength, []

    def begin(self):
        self.told = []
        return lambda: EchoReader(self.told)

    def bias(self, proposals, log_probs):
        return self.strength * proposals.figures[:, 0]

    def miniature(self):
        return Echo(self.strength / 2), "half as loud"


class EchoReader:
    def __init__(self, told):
        self.text = []
        told.append(self.text)

    def propose(self, seen):
        self.text.append(("asked", seen))
        return [(token, 1.0) for token in {item for item in self.text[-5:] if isinstance(item, int)}]

    def observe(self, token):
        self.text.append(token)


def uniform(windows, vocabulary=64):
    size = max(window.length for window in windows)
    return torch.full((len(windows), size, vocabulary), -np.log(vocabulary), dtype=torch.float32)


def random_log_probs(rows, vocabulary, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(rows, vocabulary, generator=generator) * scale, dim=-1)


def test_a_reader_is_asked_before_it_is_told():
    validation = documents([6, 5])
    scorer = Scorer(validation, ALONE)
    scorer.mix({"echo": (echo := Echo())})
    for windows in ([Window(0, 0, 1, 4)], [Window(0, 2, 4, 7), Window(1, 6, 7, 9)], [Window(1, 7, 9, 11)]):
        scorer.score(windows, uniform(windows))
    first, second = echo.told
    tokens = validation.tokens.tolist()
    seen = [1, 2, 3, 2, 3, 4]
    asked = [("asked", count) for count in seen]
    assert first == [tokens[0]] + [item for pair in zip(asked, tokens[1:7], strict=True) for item in pair]
    assert [item for item in second if isinstance(item, int)] == tokens[6:11]
    assert scorer.total().nats < np.log(64) * 10 + 20 and scorer.ledger.complete()


def test_what_is_returned_to_learn_from_is_the_models_own_cost():
    validation = documents([20])
    bare, mixed = Scorer(validation, ALONE), Scorer(validation, ALONE)
    mixed.mix({"echo": Echo()})
    window = [Window(0, 0, 1, 20)]
    logits = torch.randn(1, 19, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    own = bare.score(window, torch.log_softmax(logits, -1))
    other = mixed.score(window, torch.log_softmax(logits, -1))
    assert torch.equal(own, other) and other.requires_grad
    assert (bare.ledger.nats[1:] != mixed.ledger.nats[1:]).any()
    saved = bare.ledger.nats[1:].sum() - mixed.ledger.nats[1:].sum()
    assert mixed.gains()["echo"].nats == pytest.approx(saved, abs=1e-4) and mixed.gains()["echo"].positions == 19


def test_a_document_that_is_gone_through_backwards_is_refused():
    scorer = Scorer(documents([20]), ALONE)
    scorer.mix({"echo": Echo()})
    scorer.open(0, 20)
    later, earlier = [Window(0, 0, 9, 12)], [Window(0, 0, 1, 9)]
    scorer.score(later, uniform(later))
    with pytest.raises(RuleBroken, match="C1: experts have read up to 12 and are asked about 1"):
        scorer.score(earlier, uniform(earlier))
    with pytest.raises(RuleBroken):
        scorer.total()


def test_experts_get_no_text_that_may_not_be_read():
    """A position before which something is not scored cannot be scored; were it, experts would not be given it."""
    scorer = Scorer(documents([20]), ALONE)
    scorer.mix({"echo": Echo()})
    window = [Window(0, 0, 9, 12)]
    with pytest.raises(RuleBroken, match="C3: experts asked for tokens"):
        scorer.score(window, uniform(window))


def test_experts_come_before_the_first_score():
    scorer = Scorer(documents([20]), ALONE)
    window = [Window(0, 0, 1, 20)]
    scorer.score(window, uniform(window))
    with pytest.raises(ValueError, match="before anything is scored"):
        scorer.mix({"echo": Echo()})
    assert scorer.gains() == {}


def test_a_joined_text_is_followed_document_by_document():
    validation = documents([7, 1, 6])
    apart, joined = Scorer(validation, ALONE), Scorer(validation, ALONE)
    for scorer in (apart, joined):
        scorer.mix({"echo": Echo()})
    joined.join_documents()
    for windows in ([Window(0, 0, 1, 8)], [Window(1, 7, 8, 9)], [Window(2, 8, 9, 14)]):
        apart.score(windows, uniform(windows))
    whole = [Window(0, 0, 1, 14)]
    joined.score(whole, uniform(whole))
    np.testing.assert_array_equal(apart.ledger.nats[1:], joined.ledger.nats[1:])


@settings(deadline=None)
@given(st.data())
def test_a_tilt_is_normalised_and_is_the_product_it_says(data):
    vocabulary, rows = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 6))
    log_probs = random_log_probs(rows, vocabulary, data.draw(st.integers(0, 99)), data.draw(st.floats(0.1, 30.0)))
    cells = st.tuples(st.integers(0, rows - 1), st.integers(0, vocabulary - 1))
    at = sorted(data.draw(st.sets(cells, min_size=1, max_size=10)))
    bias = torch.tensor(data.draw(st.lists(st.floats(-8, 8), min_size=len(at), max_size=len(at))), dtype=torch.float64)
    where = torch.tensor(at)
    mixed = tilted(log_probs, Proposals(where[:, 0], where[:, 1], bias[:, None]), bias)
    assert (mixed.double().exp().sum(-1) - 1).abs().max() < 1e-5
    expected = log_probs.double()
    expected[where[:, 0], where[:, 1]] += bias
    torch.testing.assert_close(mixed.double(), torch.log_softmax(expected, -1), rtol=1e-5, atol=2e-5)
    assert torch.equal(tilted(log_probs, Proposals(where[:, 0], where[:, 1], bias[:, None]), 0 * bias), log_probs)


def test_experts_act_one_after_another_by_name():
    windows, tokens = [Window(0, 0, 1, 8)], [9, 9, 8, 9, 9, 8, 9]
    log_probs = random_log_probs(7, 64, 1)[None]

    def mixed(experts):
        mixture = Mixture(experts, torch.zeros(1, dtype=torch.int64))
        return mixture.mix(windows, log_probs, [tokens], [lambda start, end: [1]])

    both = mixed({"b": Echo(1.0), "a": Echo(0.5)})
    assert torch.equal(both, mixed({"a": Echo(0.5), "b": Echo(1.0)}))
    torch.testing.assert_close(both, mixed({"one": Echo(1.5)}))  # tilts of the same tokens add up
    assert torch.equal(mixed({"a": Echo(0.0)}), log_probs)


def test_entropy_and_miniatures():
    assert entropy(torch.full((1, 8), -np.log(8))).item() == pytest.approx(np.log(8))
    small, what = miniature({"echo": Echo(1.0)})
    assert small["echo"].strength == 0.5 and what == "; echo: half as loud"
    assert miniature(None) == (None, "")

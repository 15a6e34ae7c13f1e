"""The scorer and its ledger: what it hands out, what it takes in, what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.score.ledger import Ledger, RuleBroken
from pgolf.score.scorer import Scorer, Window
from tests.support import ALONE, documents

VOCABULARY = 64


def random_log_probs(windows, seed=0):
    longest = max(window.length for window in windows)
    generator = torch.Generator().manual_seed(seed)
    return torch.log_softmax(torch.randn(len(windows), longest, VOCABULARY, generator=generator), dim=-1)


def whole(scorer, document):
    start, end = scorer.span(document)
    return Window(document, start, start + 1, end)


def test_every_token_but_the_first_is_charged_once_and_the_total_is_the_sum():
    validation = documents([5, 9, 2])
    scorer = Scorer(validation, ALONE)
    expected, num_bytes = 0.0, 0
    for document in range(3):
        window = whole(scorer, document)
        log_probs = random_log_probs([window], document)
        nats = scorer.score([window], log_probs)
        targets = validation.tokens[window.score_start : window.score_end].astype(int)
        expected -= sum(log_probs[0, i, target].item() for i, target in enumerate(targets))
        num_bytes += validation.token_bytes[window.score_start : window.score_end].sum()
        assert nats.shape == (1, window.length)
    total = scorer.total()
    assert total.tokens == len(validation.tokens) - 1
    assert total.bytes == num_bytes == validation.document_bytes.sum()
    assert total.nats == pytest.approx(expected, rel=1e-6)
    assert total.val_bpb == pytest.approx(expected / math.log(2) / num_bytes, rel=1e-6)
    assert total.val_loss == pytest.approx(expected / total.tokens, rel=1e-6)


def test_inputs_stop_before_the_last_target():
    validation = documents([6, 4])
    scorer = Scorer(validation, ALONE)
    first = Window(1, 6, 7, 8)
    scorer.score([first], random_log_probs([first]))
    windows = [Window(0, 0, 1, 4), Window(1, 6, 8, 9)]
    inputs = scorer.inputs(windows)
    assert inputs.tolist() == [validation.tokens[0:3].tolist(), [*validation.tokens[6:8].tolist(), 0]]


def test_tokens_that_were_not_scored_cannot_be_had_as_context():
    scorer = Scorer(documents([6, 4]), ALONE)
    with pytest.raises(RuleBroken, match="C3.*not scored yet"):
        scorer.inputs([Window(0, 0, 3, 4)])


def test_rows_of_different_length_are_aligned_at_their_first_position():
    validation = documents([6, 9])
    scorer = Scorer(validation, ALONE)
    windows = [Window(0, 0, 1, 3), Window(1, 6, 7, 12)]
    log_probs = random_log_probs(windows)
    nats = scorer.score(windows, log_probs)
    assert nats[0, 2:].tolist() == [0.0] * 3
    assert scorer.ledger.nats[7] == pytest.approx(-log_probs[1, 0, int(validation.tokens[7])].item())


def test_tokens_are_revealed_only_after_they_were_scored():
    validation = documents([6, 4])
    scorer = Scorer(validation, ALONE)
    with pytest.raises(RuleBroken, match="C3.*before they were scored"):
        scorer.revealed(0, 0, 3)
    window = Window(0, 0, 1, 3)
    scorer.score([window], random_log_probs([window]))
    assert scorer.revealed(0, 0, 3).tolist() == validation.tokens[0:3].tolist()
    with pytest.raises(RuleBroken, match="C3"):
        scorer.revealed(0, 0, 4)


def test_scoring_twice_skipping_or_running_over_is_refused():
    scorer = Scorer(documents([6, 4]), ALONE)
    window = Window(0, 0, 1, 3)
    scorer.score([window], random_log_probs([window]))
    with pytest.raises(RuleBroken, match="C4.*scored already"):
        scorer.score([window], random_log_probs([window]))
    gap = Window(0, 0, 4, 5)
    with pytest.raises(RuleBroken, match="C4.*goes on at position 3"):
        scorer.score([gap], random_log_probs([gap]))
    with pytest.raises(ValueError, match="does not lie inside document 0"):
        scorer.inputs([Window(0, 0, 3, 8)])
    with pytest.raises(RuleBroken, match="C4"):
        scorer.total()


def test_what_was_never_scored_has_no_total():
    with pytest.raises(RuleBroken, match="C4.*never scored"):
        Scorer(documents([6, 4]), ALONE).total()


def test_what_does_not_add_up_to_one_is_refused():
    scorer = Scorer(documents([6]), ALONE)
    window = whole(scorer, 0)
    log_probs = random_log_probs([window])
    with pytest.raises(RuleBroken, match="C2.*misses 1"):
        scorer.score([window], log_probs + 0.01)
    with pytest.raises(RuleBroken, match="C2"):
        scorer.score([window], torch.full_like(log_probs, float("nan")))
    with pytest.raises(ValueError, match="must be"):
        scorer.score([window], log_probs[:, :2])
    assert np.isnan(scorer.ledger.nats).all()


def test_a_refusal_cannot_be_used_to_guess():
    """Giving a guess no chance and watching for the error would reveal the target: both are refused, and for good."""
    scorer = Scorer(documents([6]), ALONE)
    window = Window(0, 0, 1, 2)
    certain = torch.full((1, 1, VOCABULARY), -float("inf"))
    certain[0, 0, 7] = 0.0
    with pytest.raises(RuleBroken, match="C2.*no chance"):
        scorer.score([window], certain)
    whole_document = whole(scorer, 0)
    scorer.score([whole_document], random_log_probs([whole_document]))
    with pytest.raises(RuleBroken, match="C2.*no chance"):
        scorer.total()


def test_the_cost_can_be_learned_from():
    scorer = Scorer(documents([6]), ALONE)
    window = whole(scorer, 0)
    logits = torch.randn(1, window.length, VOCABULARY, requires_grad=True)
    scorer.score([window], torch.log_softmax(logits, dim=-1)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=5), chunk=st.integers(1, 5), seed=st.integers(0, 9))
def test_any_order_of_documents_and_chunks_gives_the_same_total(lengths, chunk, seed):
    validation = documents(lengths)
    generator = np.random.default_rng(seed)
    ledger, cost = Ledger(validation), generator.random(len(validation.tokens))
    left = {document: int(ledger.starts[document]) + 1 for document in range(len(lengths))}
    while left:
        document = int(generator.choice(list(left)))
        start, end = left[document], min(left[document] + chunk, int(ledger.ends[document]))
        ledger.write(document, start, cost[start:end], 0)
        left[document] = end
        if end == ledger.ends[document]:
            del left[document]
    assert ledger.complete()
    assert ledger.total().nats == pytest.approx(math.fsum(cost[1:]))
    assert ledger.running().nats == pytest.approx(ledger.total().nats)
    assert sorted(ledger.order[1:]) == list(range(len(cost) - 1))
    rows = ledger.per_document()
    assert rows["nats"].sum() == pytest.approx(math.fsum(cost[1:]))
    assert rows["bytes"].sum() == validation.token_bytes.sum()


def test_two_processes_merge_into_one_ledger_and_may_not_overlap():
    validation = documents([5, 7])
    one, two = Ledger(validation), Ledger(validation)
    one.write(0, 1, np.full(5, 1.0), 0)
    two.write(1, 6, np.full(6, 2.0), 1)
    together = [a + b for a, b in zip(one.fresh(), two.fresh(), strict=True)]
    for ledger in (one, two):
        ledger.merge(*together)
        assert ledger.complete()
        assert ledger.total().nats == 5 * 1.0 + 6 * 2.0
        assert ledger.fresh()[0].sum() == 0
    three, four = Ledger(validation), Ledger(validation)
    for ledger in (three, four):
        ledger.write(0, 1, np.full(5, 1.0), 0)
    with pytest.raises(RuleBroken, match="C4.*two processes"):
        three.merge(*[a + b for a, b in zip(three.fresh(), four.fresh(), strict=True)])

"""The n-gram tilt: its hints, its cost by the published formula, and the published variants that are no code."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.audit.probe import Audit
from pgolf.ttt.experts.ngram_tilt import NgramTilt
from pgolf.ttt.fixed import Chunked
from tests.support import documents, tiny_model
from tests.ttt.experts.examples import STRATEGIES, following, mixed, repetitive
from tests.ttt.strategies import BENCH, phased, run


def test_the_hint_of_published_scripts():
    """Share of the top follower at least 0.8, whatever the count; ties keep the one that came first; then learn."""
    expert = NgramTilt(levels=[[2, 0.8, 1]], boost=2.625)
    assert following(expert, [5, 6, 7, 5, 6, 8, 5, 6, 7, 5, 6]) == [
        *[[]] * 5,
        [(7, 2.625)],  # once, and it was 7
        [],
        [],
        [],  # 7 and 8 once each
        [(5, 2.625)],  # after 6 7
        [(6, 2.625)],  # after 7 5
    ]
    levels = NgramTilt(levels=[[2, 0.5, 2], [1, 0.6, 3]], boost=2.0, by_confidence=True)
    assert following(levels, [5, 6, 5, 6, 5, 6, 9, 6])[5:] == [[], [(5, 2.0)], []]


@settings(deadline=None)
@given(st.floats(0.0, 6.0), st.integers(0, 9), st.integers(0, 9))
def test_the_cost_is_the_published_formula(boost, hint, target):
    log_probs = torch.log_softmax(torch.randn(1, 10, generator=torch.Generator().manual_seed(3)), -1)

    class Hint(NgramTilt):
        def begin(self):
            class Reader:
                def propose(self, seen):
                    return [(hint, boost)]

                def observe(self, token):
                    pass

            return Reader

    got = -mixed(Hint(levels=[[1, 1.0, 1]], boost=boost), [1, target], log_probs)[0, target].double()
    q, own = log_probs[0, hint].double().exp(), -log_probs[0, target].double()
    expected = own - boost * (target == hint) + torch.log1p(q * (np.exp(boost) - 1))
    assert got.item() == pytest.approx(expected.item(), abs=2e-6)


def test_scored_history_reaches_over_documents_and_document_history_does_not():
    validation = documents([20, 20])
    validation.tokens[21:40] = validation.tokens[1:20]
    for history, reaches in (("document", False), ("scored", True)):
        expert = NgramTilt(levels=[[3, 0.5, 1]], boost=2.0, history=history)
        found = run(STRATEGIES["chunked"](experts={"tilt": expert}), validation)[0].gains()["tilt"]
        assert (found.positions > 10) == reaches


class Peeking:
    """Tilts by hint(all tokens, position). The scripts hold the whole text, so here it is taken from the scorer."""

    def __init__(self, strategy, hint):
        self.strategy, self.hint = strategy, hint

    def run(self, model, scorer, bench):
        tokens, score = scorer._tokens.numpy(), scorer.score

        def tilted(windows, log_probs, phase=0):
            changed = log_probs.detach().clone()
            for row, window in enumerate(windows):
                for column in range(window.length):
                    hint = self.hint(tokens, window.score_start + column)
                    if hint:
                        changed[row, column, hint] += 2.0
            score(windows, torch.log_softmax(changed, -1), phase)
            return -torch.log_softmax(log_probs, -1)[..., 0]  # something to learn from

        scorer.score = tilted
        self.strategy.run(model, scorer, bench)


def gate_on_the_target(tokens, p):
    """As in PR 1967: the boost applies only where the token to be scored is of one kind (it begins a word)."""
    return tokens[p - 1] if tokens[p] % 2 == 0 else 0


def hint_in_file_order(tokens, p):
    """As in PR 2130: what followed the same token before in the file, whatever was scored by then."""
    before = np.flatnonzero(tokens[: p - 1] == tokens[p - 1])
    return tokens[before[0] + 1] if len(before) else 0


@pytest.mark.parametrize(
    ("strategy", "hint", "failing"),
    [
        (Chunked(sequence_tokens=64, rows=1), gate_on_the_target, "C1a"),
        (phased(rows=1, prefix_docs=1, phases=1), hint_in_file_order, "C1b"),
        (phased(rows=1, prefix_docs=1, phases=1, order="file"), hint_in_file_order, None),
    ],
)
def test_published_variants_that_are_no_code_fail_the_audit(strategy, hint, failing):
    """Hints in file order are one where documents are scored in that order, and not with the longest first."""
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    checks = Audit(documents=3, max_tokens=40, flips=3).run(
        model, Peeking(strategy, hint), repetitive([16, 20, 40]), BENCH
    )
    failed = {check.id for check in checks if check.verdict == "fail"} & {"C1a", "C1b"}
    assert (failing in failed) if failing else not failed


@pytest.mark.parametrize(
    ("levels", "boost", "message"),
    [
        ([], 1.0, "levels is empty"),
        ([[15, 0.8]], 1.0, "give .tokens of context"),
        ([[1.5, 0.8, 1]], 1.0, "tokens of context"),
        ([[15, 0.8, 1]], -1.0, "boost=-1.0"),
    ],
)
def test_impossible_settings_are_refused(levels, boost, message):
    with pytest.raises(ValueError, match=message):
        NgramTilt(levels=levels, boost=boost)

"""Policies of the scorer that a strategy must name: joined documents, opened regions, positions left out."""

import numpy as np
import pytest
import torch

from pgolf.score.ledger import Coverage, RuleBroken
from pgolf.score.scorer import Scorer, Window
from tests.score.test_scorer import random_log_probs
from tests.support import ALONE, documents


def score(scorer, *windows):
    return scorer.score(windows, random_log_probs(windows))


def test_joined_documents_are_one_context_and_are_still_reported_one_by_one():
    scorer = Scorer(documents([6, 4]), ALONE)
    with pytest.raises(ValueError, match="does not lie inside"):
        scorer.inputs([Window(0, 2, 8, 9)])
    scorer.join_documents()
    assert scorer.documents == "joined" and scorer.num_documents == 1 and scorer.span(0) == (0, 10)
    score(scorer, Window(0, 0, 1, 8))
    assert scorer.inputs([Window(0, 2, 8, 10)]).shape == (1, 7)
    score(scorer, Window(0, 2, 8, 10))
    assert scorer.total().tokens == 9 and scorer.document_starts().tolist() == [0, 6]
    assert scorer.ledger.per_document()["tokens"].tolist() == [6, 3]
    with pytest.raises(ValueError, match="before anything is scored"):
        scorer.join_documents()


def test_an_opened_region_may_be_read_in_any_order_but_not_learned_from():
    scorer = Scorer(documents([12]), ALONE)
    score(scorer, Window(0, 0, 1, 3))
    with pytest.raises(RuleBroken, match="C3"):
        Scorer(documents([12]), ALONE).inputs([Window(0, 0, 6, 8)])
    scorer.open(3, 9)
    assert scorer.inputs([Window(0, 0, 6, 9)]).shape == (1, 8)
    score(scorer, Window(0, 0, 6, 9))
    assert not scorer.ledger.committed(0, 0, 9)
    with pytest.raises(RuleBroken, match="C4.*scored already"):
        scorer.ledger.write(0, 5, np.zeros(2), 0)
    score(scorer, Window(0, 0, 3, 6))
    assert scorer.revealed(0, 0, 9).shape == (9,)
    with pytest.raises(RuleBroken, match="C4.*goes on at position 9"):
        scorer.ledger.write(0, 10, np.zeros(2), 0)
    with pytest.raises(RuleBroken, match="C3"):
        scorer.inputs([Window(0, 0, 11, 12)])


def test_what_is_open_cannot_be_had_as_revealed_tokens():
    scorer = Scorer(documents([12]), ALONE)
    scorer.open(1, 12)
    with pytest.raises(RuleBroken, match="C3.*before they were scored"):
        scorer.revealed(0, 0, 5)


def test_positions_left_out_are_named_counted_and_out_of_reach():
    scorer = Scorer(documents([6, 4]), ALONE)
    score(scorer, Window(0, 0, 1, 7))
    with pytest.raises(ValueError, match="cannot be called every_token"):
        scorer.leave_out(np.arange(9, 10), "every_token")
    with pytest.raises(ValueError, match="that were scored"):
        scorer.leave_out(np.arange(5, 10), "whole_batches")
    score(scorer, Window(1, 6, 7, 8))
    scorer.leave_out(np.arange(8, 10), "whole_batches")
    assert scorer.coverage == Coverage("whole_batches", 1, 2, 2)
    assert scorer.total().tokens == 7
    rows = scorer.ledger.per_document()
    assert np.isfinite(rows["nats"]).tolist() == [True, False] and rows["order"].tolist() == [0, 6]
    with pytest.raises(RuleBroken, match="C4"):
        score(scorer, Window(1, 6, 8, 10))
    with pytest.raises(RuleBroken, match="C3"):
        scorer.revealed(1, 6, 9)


def test_leaving_nothing_out_is_every_token():
    scorer = Scorer(documents([6]), ALONE)
    scorer.leave_out(np.arange(0), "whole_batches")
    scorer.leave_out(np.arange(1), "whole_batches")
    score(scorer, Window(0, 0, 1, 6))
    assert scorer.coverage == Coverage("every_token", 1, 1, 0)
    assert torch.tensor(scorer.ledger.left_out).sum() == 0

"""Budgets of strategies whose weights stay, and what is told while they score."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pgolf.distributed import Group
from pgolf.score.ledger import EVERY_TOKEN
from pgolf.score.scorer import Scorer
from pgolf.ttt.budget import INTERRUPTED, OUT_OF_TIME, Budget
from pgolf.ttt.fixed import Chunked, Sliding
from tests.support import documents
from tests.ttt.strategies import BENCH, phased, run
from tests.ttt.test_adapting import Notes, clock

LENGTHS = [40, 38, 36, 34]
FIXED = [
    lambda **more: Chunked(sequence_tokens=8, rows=2, **more),
    lambda **more: Chunked(sequence_tokens=8, rows=2, documents="packed", batch_tokens=16, **more),
    lambda **more: Chunked(sequence_tokens=8, rows=2, documents="joined", **more),
    lambda **more: Sliding(sequence_tokens=8, stride=4, rows=2, **more),
    lambda **more: Sliding(sequence_tokens=8, stride=4, rows=2, windows="over_text", documents="joined", **more),
]


@pytest.mark.parametrize("made", FIXED)
def test_fixed_weights_end_when_the_time_is_up_and_say_what_is_missing(made):
    validation, notes = documents(LENGTHS), Notes()
    scorer, _ = run(made(max_seconds=6.0), validation, bench=replace(BENCH, console=notes, clock=clock(1.0)))
    found, total = scorer.coverage, scorer.total()
    assert found.policy == OUT_OF_TIME and 0 < found.left_out < len(validation.tokens) - 1
    assert total.tokens + found.left_out == len(validation.tokens) - 1
    assert any("documents a second so far; at this pace scoring takes" in line for line in notes.said)
    assert f"{found.documents} of 4 documents" in notes.said[-1] and "no score of" in notes.said[-1]


@pytest.mark.parametrize("made", FIXED)
def test_a_limit_that_is_not_reached_changes_nothing(made):
    usual, _ = run(made(), documents(LENGTHS))
    watched, _ = run(made(max_seconds=1e9), documents(LENGTHS))
    assert np.array_equal(usual.ledger.nats, watched.ledger.nats, equal_nan=True)
    assert watched.coverage.policy == EVERY_TOKEN


@pytest.mark.parametrize("made", [*FIXED, lambda: phased(rows=1)])
def test_asked_to_end_the_batch_under_way_is_the_last(made):
    notes, looks = Notes(), []

    def asked():
        looks.append(None)
        return len(looks) >= 2

    scorer, _ = run(made(), documents(LENGTHS), bench=replace(BENCH, console=notes, asked=asked))
    assert len(looks) == 2 and scorer.coverage.policy == INTERRUPTED
    assert 0 < scorer.total().tokens < sum(LENGTHS) - 1 and "asked to end with" in notes.said[-1]


def test_a_batch_of_adapters_is_broken_off_between_its_chunks():
    """The longest documents come first, and a batch of them may take longer than there is time."""
    validation, notes, events = documents(LENGTHS), Notes(), []
    bench = replace(BENCH, console=notes, clock=clock(1.0), log=events.append)
    scorer, _ = run(phased(rows=4, phases=1, prefix_docs=4, max_seconds=2.5), validation, bench=bench)
    found, total = scorer.coverage, scorer.total()
    assert found.policy == OUT_OF_TIME and found.documents == 0 and total.tokens == 3 * 4 * 8
    assert "more than ttt.max_seconds=2.5" in notes.said[0] and "0 of 4 documents" in notes.said[-1]
    assert not any("finished" in event for event in events)  # nothing is said to be finished


def test_a_last_batch_that_is_asked_to_end_is_no_score():
    looks = []

    def asked():
        looks.append(None)
        return len(looks) > 15  # in the last of four documents, each its own batch: 4 looks inside and 1 after

    scorer, _ = run(phased(rows=1), documents(LENGTHS), bench=replace(BENCH, asked=asked))
    assert scorer.coverage.policy == INTERRUPTED and scorer.coverage.documents == 3


def test_events_tell_how_the_score_came_about():
    events = []
    scorer, _ = run(
        phased(rows=1, phases=1, prefix_docs=2), documents(LENGTHS), bench=replace(BENCH, log=events.append)
    )
    scored = [event for event in events if event["event"] == "score"]
    assert sorted(document for event in scored for document in event["scored"]) == [0, 1, 2, 3]
    assert [event["finished"] for event in scored] == [1, 2, 3, 4]
    assert scored[-1]["bpb_so_far"] == pytest.approx(scorer.total().val_bpb)
    (phase,) = [event for event in events if event["event"] == "phase"]
    assert phase["documents"] == 2 and 0 <= phase["begin"] <= phase["end"]
    (prediction,) = [event for event in events if event["event"] == "prediction"]
    assert prediction["documents_per_second"] * prediction["seconds"] == pytest.approx(4)


def test_a_limit_must_be_a_time():
    for made in FIXED:
        with pytest.raises(ValueError, match=r"ttt.max_seconds=0 must be above 0"):
            made(max_seconds=0)


@pytest.mark.parametrize(("processes", "title"), [(1, "final"), (2, "final (the first of 2 processes)")])
def test_progress_says_whose_it_is(processes, title):
    scorer = Scorer(documents(LENGTHS), Group(0, processes, torch.device("cpu")))
    assert Budget(None, 1.0, scorer, replace(BENCH, title="final")).title == title

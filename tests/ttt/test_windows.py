"""Cutting the text: coverage, and the published variants position by position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.interop.parity import coverage
from pgolf.score.ledger import Ledger
from pgolf.ttt.windows import by_chunk, pieces, sliding_in_documents, sliding_over_text
from tests.support import documents

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 1)


def spans_of(lengths):
    ledger = Ledger(documents(lengths))
    return [(int(start), int(end)) for start, end in zip(ledger.starts, ledger.ends, strict=True)]


def positions(windows):
    return [p for window in windows for p in range(window.score_start, window.score_end)]


@given(lengths=LENGTHS, size=st.integers(1, 12), stride=st.integers(1, 12), batch=st.integers(1, 3))
def test_every_cut_scores_each_position_once_in_its_document(lengths, size, stride, batch):
    spans, stride = spans_of(lengths), min(size, stride)
    cuts = [
        pieces(spans, size, None),
        pieces(spans, size, batch * size),
        sliding_in_documents(spans, size, stride),
        sliding_over_text(spans, size, stride),
        sliding_over_text([(0, sum(lengths))], size, stride),
    ]
    for windows in cuts:
        assert sorted(positions(windows)) == list(range(1, sum(lengths)))
        assert all(window.width <= size for window in windows)
    for windows in cuts[:4]:
        for window in windows:
            start, end = spans[window.document]
            assert start <= window.context_start < window.score_start < window.score_end <= end


@given(tokens=st.integers(2, 200), size=st.integers(1, 40), stride=st.integers(1, 40))
def test_sliding_over_joined_text_is_the_published_order_of_positions(tokens, size, stride):
    stride = min(size, stride)
    windows = sliding_over_text([(0, tokens)], size, stride)
    assert positions(windows) == coverage.sliding(tokens, size, stride).tolist()


def test_the_published_example_of_sliding_windows():
    """N = 10 targets, T = 4, stride 2: starts 0, 2, 4, 6 score 4, 2, 2, 2."""
    windows = sliding_over_text([(0, 11)], 4, 2)
    assert [(window.context_start, window.length) for window in windows] == [(0, 4), (2, 2), (4, 2), (6, 2)]


def test_pieces_begin_anew_with_every_batch():
    windows = pieces([(0, 8), (7, 21)], 4, 8)
    assert [(w.context_start, w.score_end - 1) for w in windows] == [
        (0, 4),
        (4, 7),
        (7, 8),
        (8, 12),
        (12, 16),
        (16, 20),
    ]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_chunks_hold_the_windows_that_begin_to_score_in_them(stride):
    windows = sliding_over_text([(0, 41)], 8, stride)
    chunks = by_chunk(windows, 16)
    assert [window for chunk in chunks for window in chunk] == windows
    for index, chunk in enumerate(chunks):
        scored = np.array(positions(chunk)) - 1
        assert (scored // 16 == index).all()

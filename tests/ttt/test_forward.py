"""The compiled forward of scoring gives the scores of the plain one, from few graphs."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pgolf.train.recompiles import graphs
from pgolf.ttt import forward
from pgolf.ttt.fixed import Chunked
from tests.support import documents
from tests.ttt.strategies import BENCH, phased, run, score_first_sgd

LENGTHS = [50, 37, 90, 20, 3, 64, 11, 2, 33, 29, 80, 41]


@pytest.fixture
def traced(monkeypatch):
    """The forward as the compiler traces it, without the code that it would generate."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    yield forward.compiled()
    torch.compiler.reset()


def test_scores_are_those_of_the_plain_forward_from_few_graphs(traced):
    text = documents(LENGTHS)
    before = graphs()
    strategies = {  # and the graphs that were made with it and those before it
        phased(rows=3): 3,  # the first documents of a batch with and without gradients, those behind them without
        phased(rows=4, chunk=5, context_tokens=17, phases=1): 3,
        score_first_sgd(): 4,  # without adapters
        Chunked(sequence_tokens=16, rows=2): 5,  # and weights that might want gradients
        Chunked(sequence_tokens=16, rows=2, documents="packed", batch_tokens=32): 6,  # packed rows
    }
    for strategy, most in strategies.items():
        plain, _ = run(strategy, text)
        found, _ = run(strategy, text, bench=replace(BENCH, forward=traced))
        assert 0 < graphs() - before <= most
        assert found.total().nats == pytest.approx(plain.total().nats, rel=1e-6)
        np.testing.assert_allclose(found.ledger.nats, plain.ledger.nats, rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_row_is_compiled_where_there_are_no_others(traced):
    text = documents([30, 20])
    before = graphs()
    found, _ = run(phased(rows=1, phases=0), text, bench=replace(BENCH, forward=traced))
    assert graphs() - before >= 1
    assert found.total().nats == pytest.approx(run(phased(rows=1, phases=0), text)[0].total().nats, rel=1e-6)

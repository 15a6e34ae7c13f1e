"""The compiled forward of scoring gives the scores of the plain one, from few graphs, wherever a strategy scores."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pgolf.train.recompiles import graphs
from pgolf.ttt import forward
from pgolf.ttt.e2e import InnerSteps
from pgolf.ttt.fixed import Chunked, Sliding
from tests.support import documents, tiny_model
from tests.ttt.strategies import BENCH, phased, run, score_first_sgd

LENGTHS = [50, 37, 90, 20, 3, 64, 11, 2, 33, 29, 80, 41]
STRATEGIES = {
    "phased": lambda: phased(rows=3),
    "short chunks": lambda: phased(rows=4, chunk=5, context_tokens=17, phases=1),
    "e2e": lambda: phased(rows=3, phases=0, inner=InnerSteps(steps=1)),
    "one row": lambda: phased(rows=1, phases=0),
    "one column": lambda: phased(rows=2, chunk=1, context_tokens=12, phases=0),
    "sgd": score_first_sgd,
    "chunked": lambda: Chunked(sequence_tokens=16, rows=2),
    "sliding": lambda: Sliding(sequence_tokens=16, stride=1, rows=2),
    "packed": lambda: Chunked(sequence_tokens=16, rows=2, documents="packed", batch_tokens=32),
}


@pytest.fixture
def traced(monkeypatch):
    """The forward as the compiler traces it, without the code that it would generate."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    yield forward.compiled()
    torch.compiler.reset()


def test_scores_are_those_of_the_plain_forward_from_few_graphs(traced):
    text = documents(LENGTHS)
    made = {}
    for name, strategy in STRATEGIES.items():
        plain, _ = run(strategy(), text)
        before = graphs()
        found, _ = run(strategy(), text, bench=replace(BENCH, forward=traced))
        made[name] = graphs() - before
        assert found.total().nats == pytest.approx(plain.total().nats, rel=1e-5), name
        np.testing.assert_allclose(found.ledger.nats, plain.ledger.nats, rtol=1e-3, atol=1e-4, err_msg=name)
    # with and without gradients, one row and several; then without adapters, and weights that might want gradients
    assert made.pop("phased") in (3, 4)
    assert made.pop("packed") == 1  # its own kind of row, whatever was compiled before
    assert sum(made.values()) <= 5 and made["sgd"] + made["chunked"] >= 1, made


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_score_goes_through_the_forward_that_was_handed_in(name):
    """The model is called by it, or to learn from what was scored, and in no other way."""
    inside, calls = [], []

    def handed_in(*arguments):
        inside.append(True)
        calls.append(forward.log_probs_at(*arguments))
        inside.pop()
        return calls[-1]

    def called(model, _):
        learns = next(model.parameters()).requires_grad  # in the global phases and in steps on the whole model alone
        assert learns or inside, "the model was called past it"

    model = tiny_model(scramble=0.1).requires_grad_(False)
    model.register_forward_pre_hook(called)
    scorer, _ = run(STRATEGIES[name](), documents(LENGTHS), model=model, bench=replace(BENCH, forward=handed_in))
    assert scorer.ledger.complete() and calls


def test_what_cannot_compile_says_so_in_a_line(monkeypatch):
    def fails(function):
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", fails)
    assert forward.why_not(torch.device("cpu")) == "RuntimeError: no compiler"

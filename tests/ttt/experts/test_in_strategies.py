"""Every expert, in every strategy: full distributions, the past alone, nothing at strength 0."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.audit.probe import Audit
from tests.support import tiny_model
from tests.ttt.experts.examples import EXPERTS, POWERLESS, STRATEGIES, count_bias, mixed, repetitive, tilt
from tests.ttt.strategies import BENCH, run


@pytest.mark.parametrize("name", EXPERTS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_full_distributions_that_no_later_token_moves(name, data):
    tokens = [1, *data.draw(st.lists(st.integers(4, 8), min_size=4, max_size=40))]
    flipped = data.draw(st.integers(1, len(tokens) - 1))
    changed = [*tokens[:flipped], 4 + (tokens[flipped] - 3) % 5, *tokens[flipped + 1 :]]
    generator = torch.Generator().manual_seed(len(tokens))
    scale = data.draw(st.floats(0.1, 20.0))
    log_probs = torch.log_softmax(torch.randn(len(tokens) - 1, 40, generator=generator) * scale, dim=-1)
    one, other = (mixed(EXPERTS[name], text, log_probs) for text in (tokens, changed))
    assert (one.double().exp().sum(-1) - 1).abs().max() < 1e-5
    assert torch.equal(one[:flipped], other[:flipped])  # row r predicts position r + 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_strength_as_if_absent(strategy):
    validation = repetitive([30, 22, 14])
    bare, _ = run(STRATEGIES[strategy](), validation)
    none, _ = run(STRATEGIES[strategy](experts={}), validation)
    still, _ = run(STRATEGIES[strategy](experts=POWERLESS), validation)
    assert bare.ledger.nats[1:].tobytes() == still.ledger.nats[1:].tobytes() == none.ledger.nats[1:].tobytes()
    assert all(gain.positions and gain.nats == 0.0 for gain in still.gains().values()) and bare.gains() == {}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_experts_act_and_leave_what_is_learned_alone(strategy):
    validation = repetitive([30, 22, 14])
    bare, one = run(STRATEGIES[strategy](), validation)
    scorer, other = run(STRATEGIES[strategy](experts=EXPERTS), validation)
    gains = scorer.gains()
    assert set(gains) == set(EXPERTS) and all(gain.positions > 5 for gain in gains.values())
    assert bare.total().nats - scorer.total().nats == pytest.approx(sum(gain.nats for gain in gains.values()), abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_counts_of_a_document_are_the_same_however_it_is_scored(strategy):
    """Positions where an expert acts depend on the document alone: not on windows, batches or what came before."""
    validation = repetitive([30, 22, 14])
    experts = {"ngram_tilt": tilt(), "ngram_bias": count_bias()}
    found = run(STRATEGIES[strategy](experts=experts), validation)[0].gains()
    plain = run(STRATEGIES["chunked"](experts=experts), validation)[0].gains()
    assert {name: gain.positions for name, gain in found.items()} == {n: g.positions for n, g in plain.items()}


@pytest.mark.parametrize("strategy", ["packed", "joined", "phased"])
def test_the_audit_passes_them_and_sees_them_act(strategy):
    audit = Audit(documents=4, max_tokens=40, flips=2)
    chosen = STRATEGIES[strategy](experts={name.partition("_scored")[0]: EXPERTS[name] for name in EXPERTS})
    small, scope = audit.scope(chosen)
    assert "ngram_tilt: hints from contexts of at most 2 tokens" in scope and "tap_in: matches" in scope
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    checks = audit.run(model, chosen, repetitive([40, 30, 20, 16]), BENCH)
    assert [check for check in checks if check.verdict == "fail"] == []
    scorer, _ = run(small, repetitive([40, 30, 20, 16]))
    assert all(gain.positions > 10 for gain in scorer.gains().values())

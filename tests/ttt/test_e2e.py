"""Inner steps: how many, at which rate, on which gradient, and nothing at 0."""

import pytest
import torch

from pgolf.audit.probe import Audit
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.e2e import InnerSteps, cost_of_scored
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import BENCH, phased, run


class Counting(torch.optim.SGD):
    """Counts its steps, and the rates that they were taken at."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.5)
        self.rates = []

    def step(self, closure=None):
        self.rates.append(self.param_groups[0]["lr"])
        super().step(closure)


def taken(inner, start=4.0):
    """Steps on the cost x^2 / 2, whose gradient is x, from `start`: the optimizer, and x after the usual one."""
    x = torch.tensor([start], requires_grad=True)
    optimizer = Counting([x])

    def cost():
        return x.square() / 2

    def step(nats):
        optimizer.zero_grad()
        nats.sum().backward()
        optimizer.step()

    step(inner.take(optimizer, step, cost, cost()))
    return optimizer, x.item()


def test_inner_steps_come_before_the_usual_one_each_with_its_own_gradient():
    optimizer, x = taken(InnerSteps(steps=3, lr=0.1))
    assert optimizer.rates == [0.1, 0.1, 0.1, 0.5] and optimizer.param_groups[0]["lr"] == 0.5
    assert x == pytest.approx(4.0 * 0.9**3 * 0.5)
    assert taken(InnerSteps(steps=2))[0].rates == [0.5] * 3
    assert taken(InnerSteps(steps=0, lr=0.1))[1] == pytest.approx(2.0)


def test_no_inner_steps_are_the_adapters_alone_to_the_bit():
    validation = documents([40, 38, 20, 18])
    bare, model = run(phased(), validation)
    still, other = run(phased(inner=InnerSteps(steps=0, lr=0.01)), validation)
    assert bare.ledger.nats[1:].tobytes() == still.ledger.nats[1:].tobytes()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_the_first_chunk_costs_the_same_and_later_ones_less_where_text_repeats():
    validation = documents([120, 120])
    for start in (1, 121):
        validation.tokens[start : start + 119] = 9 + torch.arange(119).numpy().astype("uint16") % 3
    few, _ = run(phased({"lr": 0.01}, phases=0), validation)
    many, _ = run(phased({"lr": 0.01}, phases=0, inner=InnerSteps(steps=4)), validation)
    assert (few.ledger.nats[1:9] == many.ledger.nats[1:9]).all()
    assert many.ledger.nats[9:60].sum() < 0.8 * few.ledger.nats[9:60].sum()


def test_inner_steps_pass_the_audit():
    strategy = phased(prefix_docs=3, inner=InnerSteps(steps=2, lr=0.05))
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    checks = Audit(documents=3, max_tokens=40, flips=2).run(model, strategy, documents([40, 30, 20]), BENCH)
    assert [check for check in checks if check.verdict == "fail"] == []


def test_the_audit_probes_fewer_inner_steps_and_says_so():
    strategy = phased(inner=InnerSteps(steps=16, lr=0.002))
    small, what = strategy.miniature(4)
    assert (small.inner.steps, small.inner.lr) == (2, 0.002) and "2 inner steps" in what
    assert strategy.inner.steps == 16 and phased(inner=InnerSteps(steps=1)).miniature(4)[0].inner.steps == 1


def test_the_cost_of_what_was_scored_charges_nothing():
    scorer = Scorer(documents([12, 9]), ALONE)
    windows = [Window(0, 0, 1, 8), Window(1, 12, 13, 17)]
    log_probs = torch.log_softmax(torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0)), -1)
    nats = scorer.score(windows, log_probs)
    assert torch.equal(cost_of_scored(scorer, windows, log_probs), nats)
    assert scorer.ledger.running().tokens == 11


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 17}, "steps=17 must lie between 0 and 16"), ({"steps": 1, "lr": 0.2}, "lr=0.2 must be above 0")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InnerSteps(**settings)

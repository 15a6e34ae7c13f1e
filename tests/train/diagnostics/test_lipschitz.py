"""The Lipschitz accounting over training: when it is taken down, what is in a record, and that it changes nothing."""

import pytest
import torch

from pgolf.model.lipschitz import named_terms
from pgolf.train.diagnostics.lipschitz import Lipschitz
from tests.support import tiny_model
from tests.train.small import train


def test_terms_are_recorded_and_change_no_bit(tmp_path):
    found = []
    averaged, _, _, model = train(tmp_path, max_steps=9, diagnostics=Lipschitz(every=3), on=found.append)
    plain, _, _, _ = train(tmp_path, max_steps=9)
    assert all(torch.equal(averaged[name], plain[name]) for name in plain)
    records = [event for event in found if event["event"] == "lipschitz"]
    assert [event["step"] for event in records] == [1, 3, 6, 9]
    assert {"event": "lipschitz", "step": 9, **named_terms(model)} == records[-1]
    matrix = "blocks.1.mlp.proj.weight"  # begins at zero, and so does what it is in
    norms = [event["singular_values"][matrix] for event in records]
    assert norms == sorted(norms) and norms[-1] > 2 * norms[0] > 0.0
    products = [event["product"]["1"] for event in records]
    assert 1.0 < products[0] < products[-1]
    assert records[0]["query_gains"]["1"] == pytest.approx(2.0, rel=0.05)


def test_the_first_step_is_recorded_whatever_the_interval():
    model, part = tiny_model(), Lipschitz(every=50)
    assert [step for step in range(1, 120) if part.due(model, step)] == [1, 50, 100]


def test_an_impossible_interval_is_refused():
    with pytest.raises(ValueError, match="every=0"):
        Lipschitz(every=0)

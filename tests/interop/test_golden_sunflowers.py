"""The published checks of PR 2059 come out of the parts that are here, and notice when a part is another."""

import pytest
import torch

from pgolf.app import build
from pgolf.interop import golden_sunflowers
from pgolf.interop.golden_sunflowers import DIGEST, SEED, SIZES, TABLES, equivalence, smoke
from pgolf.interop.initial_state import naive_state, published_digest, random_batch
from tests.shipped import job


@pytest.fixture(scope="module")
def baseline():
    chosen = job("experiment=pr2059_baseline", *TABLES)
    assert not chosen.refusals
    return build.build(chosen.config["model"], "model")


def by_name(findings) -> dict[str, str]:
    found = list(findings)
    assert [one.what for one in found if not one.agrees] == []
    return {one.what: one.found for one in found}


def test_the_smoke_test_gives_its_published_values() -> None:
    found = by_name(smoke())
    assert found["PhiNTA: trained values"] == "1664" and found["PhiNTA: frozen values"] == "4096"
    assert found["JEPA: the loss"] == "1.6922" and found["loops: growth of a block of 1.01"] == "1.0406"
    assert found["inner steps that are off: calls of the optimiser"] == "0" and len(found) == 12


def test_the_equivalence_gives_its_published_hash_and_loss(baseline) -> None:
    found = by_name(equivalence(baseline(SIZES.vocab_size, 7)))
    assert found["SHA-256 of the initial state"] == DIGEST and DIGEST.startswith("511dbc0164e03b1b")
    assert found["loss of a random batch"] == "6.929044246674"


def test_another_part_is_noticed(monkeypatch: pytest.MonkeyPatch, baseline) -> None:
    monkeypatch.setattr(golden_sunflowers, "INVERSE", 0.5)
    monkeypatch.setattr(golden_sunflowers, "LOOPS", 3)
    wrong = {one.what for one in smoke() if not one.agrees}
    assert "loops: growth of a block of 1.01" in wrong and "loops = round(phi^3)" in wrong
    model = baseline(SIZES.vocab_size, 7)
    monkeypatch.setattr(model.softcap, "cap", 1.0)
    assert [one.what for one in equivalence(model) if not one.agrees] == ["loss of a random batch"]


def test_the_equivalence_says_nothing_of_what_is_inside_a_block(baseline) -> None:
    """Every output projection is zero, so the published loss is that of a model whose blocks do nothing."""
    model = baseline(SIZES.vocab_size, 7)
    state = naive_state(SIZES, SEED)
    for name in state:
        if ".attn.c_" in name or ".mlp.fc." in name:
            state[name] = torch.full_like(state[name], 3.0)
    model.load_state_dict(state)
    inputs, targets = random_batch(SIZES.vocab_size, 2, 64, 42)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.logits(model(inputs)).flatten(0, 1), targets.flatten())
    assert f"{loss.item():.12f}" == "6.929044246674" and published_digest(state) != DIGEST


def test_the_published_hash_depends_on_names_shapes_dtypes_and_bytes() -> None:
    state = {"b": torch.zeros(2, 3), "a": torch.ones(4)}
    digests = {
        published_digest(one)
        for one in (
            state,
            {"c": state["b"], "a": state["a"]},
            {"b": state["b"].T.contiguous(), "a": state["a"]},
            {"b": state["b"].int(), "a": state["a"]},
            {"b": state["b"] + 1, "a": state["a"]},
        )
    }
    assert len(digests) == 5
    assert published_digest(state) == published_digest(dict(reversed(state.items())))

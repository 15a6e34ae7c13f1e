"""The events of a configuration: which fire, which never can, and whether an optimiser steps where none should."""

import pytest

from pgolf.app import build
from pgolf.app.verbs.verify import main
from pgolf.app.verification import events
from pgolf.app.verification.events import Story, story
from tests.shipped import job

TINY = (
    "model.dim=48",
    "model.depth.num_layers=3",
    "model.depth.loop_end=1",
    "train.sequence_tokens=64",
    "train.micro_batch_tokens=64",
    "train.batch_tokens=64",
)


def told(*overrides: str) -> Story:
    chosen = job(*TINY, *overrides)
    assert not chosen.refusals, chosen.refusals
    return story(build.recipe(chosen.config))


def test_events_fire_at_their_steps_and_a_strategy_that_adapts_steps() -> None:
    found = told("train.loop_at=0.5", "train/weight_decay=taper", "train.weight_decay.start=0.75")
    assert found.problems() == []
    assert "plan: the plan looped starts (step 4)" in found.fired
    assert any(one.startswith("weight_decay_scale: ") and one.endswith("(step 6)") for one in found.fired)
    assert found.adapted > 0 and not found.still


def test_what_a_budget_ends_before_never_fires() -> None:
    """The momentum ramp of the mini scale takes 100 steps; a published taper was planned for step 14,000 of 4,844."""
    found = told("train.max_steps=20", "ttt=none")
    assert [one for one in found.problems() if "momentum" in one and "step 100" in one] == found.problems() != []
    assert found.still and found.adapted == 0


def test_a_term_of_the_loss_begins_where_it_says() -> None:
    jepa = ("train/loss=linear_span", "train.loss.terms.linear_span.start=0.5", "ttt=none")
    assert "train.loss.terms.linear_span: the term starts (step 4)" in told(*jepa).fired
    late = told(*jepa[:1], "train.loss.terms.linear_span.start=0.99", "ttt=none")
    assert any("never fires: train.loss.terms.linear_span" in one for one in late.problems())


def test_inner_steps_multiply_the_steps_while_scoring() -> None:
    usual, inner = told("ttt=lora"), told("ttt=e2e", "ttt.chunk=48", "ttt.inner.steps=2")
    assert inner.adapted == 3 * usual.adapted > 0


def test_an_optimiser_that_steps_where_nothing_should_learn_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_steps_while_scoring", lambda *_: 2)
    (problem,) = told("ttt=none").problems()
    assert "2 step(s) while a strategy without adaptation scored" in problem


def test_a_model_that_is_too_large_is_not_trained_here() -> None:
    found = story(build.recipe(job("scale=full").config))
    assert found.steps == 0 and "no short training here" in found.lines()[-1]


def test_the_verb_says_never_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join([*TINY, "ttt=none"])
    assert main([words, f"{words} train.max_steps=20"]) == 1
    shown = capsys.readouterr().out
    assert "the same model" in shown and "NOT" not in shown and shown.count("never fires") == 1

"""Training with an objective: what is recorded, what is resumed, what is left in the end, and costs of model parts."""

import math
from functools import partial

import pytest
import torch

from pgolf.data.loaders import DocumentPackingLoader
from pgolf.errors import UserError
from pgolf.train.checkpoint import Checkpoints
from pgolf.train.warmup import Warmup
from tests.support import ALONE, tiny_model
from tests.train.loss import made
from tests.train.small import Spoken, losses, train

BYTES = {"token_bytes": lambda: (made.BYTES, made.SPACES)}


def test_a_run_continues_to_the_same_bits_and_keeps_nothing_of_the_heads(tmp_path):
    """Stopped before and after the span loss starts; with two micro-batches a step."""
    changes = {"max_steps": 16, "loss": made.everything(), **BYTES}
    whole, _, events, model = train(tmp_path / "whole", **changes)
    assert set(whole) == set(model.state_dict()) == set(tiny_model().state_dict())
    for stop_after in (2, 9):
        folder = tmp_path / f"cut{stop_after}"
        with pytest.raises(KeyboardInterrupt):
            train(folder, checkpoint_seconds=0.0, stop_after=stop_after, **changes)
        kept = Checkpoints(folder / "checkpoint", keep=2, background=None).newest(ALONE, Spoken())
        assert "training_only.multi_token.ahead_2" in kept["model"]
        rest, _, tail, _ = train(folder, checkpoint_seconds=0.0, **changes)
        assert [event["objective"] for event in tail] == [event["objective"] for event in events[stop_after - 1 :]]
        assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_the_training_loss_stays_plain_cross_entropy(tmp_path):
    """Its first value is the one of a run without terms: the same weights, the same text."""
    _, _, plain, _ = train(tmp_path, max_steps=1)
    _, _, events, _ = train(tmp_path, max_steps=12, loss=made.everything(), **BYTES)
    assert "objective" not in plain[0] and not [key for key in plain[0] if key.startswith("loss_")]
    assert losses(events)[0] == pytest.approx(losses(plain)[0], rel=1e-6)
    assert events[0]["loss_multi_token"] == pytest.approx(0.2 * math.log(64), rel=1e-6)
    assert events[0]["loss_span"] == events[1]["loss_span"] == 0.0 < events[2]["loss_span"]  # from a tenth on
    assert all(event["objective"] > event["train_loss"] for event in events)
    assert losses(events)[-1] < 0.9 * losses(events)[0]


def test_the_costs_of_model_parts_are_minimised(tmp_path):
    """A block that asks for small outputs gets them, and the record says what it costs."""

    def costly(model, weight):
        block = model.blocks[1]
        forward = block.forward

        def with_cost(x, x0, step, context, *rest):
            y = forward(x, x0, step, context, *rest)
            context.walk.costs["size"] = weight * y.square().mean()
            return y

        block.forward = with_cost
        return model

    _, _, plain, _ = train(tmp_path, max_steps=8)
    _, _, free, _ = train(tmp_path, max_steps=8, model=costly(tiny_model(), 0.0))
    _, _, events, _ = train(tmp_path, max_steps=8, model=costly(tiny_model(), 1.0))
    assert losses(free) == losses(plain) and losses(events)[0] == losses(plain)[0]
    for event in events:
        assert event["objective"] == pytest.approx(event["train_loss"] + event["loss_size"], rel=1e-5)
    _, _, composed, _ = train(tmp_path, max_steps=8, model=costly(tiny_model(), 1.0), loss=made.Objective())
    assert losses(composed) == pytest.approx(losses(events), rel=1e-4)
    assert composed[-1]["loss_size"] < composed[0]["loss_size"]


def test_a_rehearsed_and_compiled_objective_trains_alike(tmp_path, monkeypatch):
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    few = partial(DocumentPackingLoader, bucket=2)  # rows whose numbers of boundaries differ
    changes = {"max_steps": 4, "loss": made.everything(), "loader": few, **BYTES}
    _, _, events, _ = train(tmp_path, **changes)
    warmup, console = Warmup(steps=1, momentum="reset"), Spoken()
    _, _, compiled, _ = train(tmp_path, compile=True, warmup=warmup, console=console, **changes)
    assert not [sentence for sentence in console.said if "waited for the compiler" in sentence]
    assert [event["objective"] for event in compiled] == pytest.approx([e["objective"] for e in events], rel=1e-5)


def test_what_is_no_number_is_named(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.get_parameter("proj.weight")[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"Not a number first: the parameter blocks\.1\.mlp\.proj\.weight"):
        train(tmp_path, model=model, loss=made.everything(), **BYTES)


def test_sequences_that_have_no_room_are_refused(tmp_path):
    loss = made.everything()
    loss.terms["span"].max_span_fraction = 1.0
    with pytest.raises(ValueError, match=r"a span of 64 has no room in sequences of 64 tokens"):
        train(tmp_path, loss=loss, **BYTES)

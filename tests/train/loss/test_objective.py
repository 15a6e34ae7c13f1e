"""Objectives: every formula written out, one denominator for a whole step, one graph, and several terms at once."""

import math
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.functional import cosine_similarity, cross_entropy, log_softmax

from pgolf.optim.schedule import Position, Taper
from pgolf.train.loss.byte_weights import ByteWeights
from pgolf.train.loss.latent_rollout import LatentRollout, sigreg
from pgolf.train.loss.linear_span import LinearSpan
from pgolf.train.loss.multi_token import MultiToken
from pgolf.train.loss.objective import Objective, attach, shed
from pgolf.train.loss.z_loss import ZLoss
from tests.support import ALONE, run_ranks, tiny_model
from tests.train.loss import made

SPAN = {"coefficient": 0.3, "max_span_fraction": 0.5, "layer": -1, "start": 0.0}


def walked(model, batch, wanted=frozenset()):
    """Logits, and what the walk kept."""
    context = made.context_of(batch).begun(batch.inputs, wanted)
    return model.logits(model(batch.inputs, context), context), context.walk.kept


def value_of(objective, model, batch, position=made.MIDDLE):
    running = made.running(objective)
    (given,) = running.given([batch], position, ALONE)
    value, parts = made.loss_of(running, model, batch, given)
    return value.detach(), parts, given


def test_without_terms_it_is_plain_cross_entropy():
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    plain = cross_entropy(walked(model, batch)[0].flatten(0, 1), batch.targets.flatten())
    value, parts, _ = value_of(Objective(), model, batch)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(parts["cross_entropy"], plain)


@pytest.mark.parametrize(("power", "most", "spaces"), [(1.0, None, False), (0.5, 2.5, True)])
def test_cross_entropy_is_weighted_by_bytes(power, most, spaces):
    """The mean of the weights, by which the published form divides them, drops out."""
    model, batch = tiny_model(scramble=0.1), made.packed(0)
    logits = walked(model, batch)[0].detach().flatten(0, 1)
    nats = cross_entropy(logits, batch.targets.flatten(), reduction="none")
    counts = [max(made.BYTES[t] - (0 if spaces else made.SPACES[t]), 1) for t in batch.targets.flatten().tolist()]
    weights = torch.tensor([min(count**power, most or 1e9) for count in counts])
    value, parts, _ = value_of(Objective(weights=ByteWeights(power=power, most=most, spaces=spaces)), model, batch)
    torch.testing.assert_close(value, (weights * nats).sum() / weights.sum())
    normalised = weights / weights.mean()
    torch.testing.assert_close(value, (normalised * nats).sum() / normalised.sum())
    torch.testing.assert_close(parts["cross_entropy"], nats.mean())
    assert abs(float(value - nats.mean())) > 1e-3


def test_labels_are_smoothed():
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    surprise = -log_softmax(walked(model, batch)[0], dim=-1)
    plain = surprise.gather(-1, batch.targets[..., None]).mean()
    value, parts, _ = value_of(Objective(label_smoothing=0.1), model, batch)
    torch.testing.assert_close(value, 0.9 * plain + 0.1 * surprise.mean())
    torch.testing.assert_close(parts["cross_entropy"], plain)


@pytest.mark.parametrize(("fraction", "coefficient"), [(0.0, 1e-2), (0.5, 5.5e-3), (1.0, 1e-3)])
def test_the_z_loss_falls(fraction, coefficient):
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    logits = walked(model, batch)[0]
    term = ZLoss(coefficient=1e-2, schedule=Taper(start=0.0, final=0.1))
    value, parts, _ = value_of(Objective(terms={"z": term}), model, batch, Position(3, fraction))
    torch.testing.assert_close(parts["z"], coefficient * torch.logsumexp(logits, -1).square().mean())
    torch.testing.assert_close(value, cross_entropy(logits.flatten(0, 1), batch.targets.flatten()) + parts["z"])


@pytest.mark.parametrize("batch", [made.rows(0), made.packed(0)], ids=["rows", "packed"])
def test_heads_predict_the_tokens_after_the_next_within_a_document(batch):
    objective = Objective(terms={"ahead": MultiToken(heads=2, weight=0.2)})
    model = made.model_for(objective)
    hidden = model(batch.inputs, made.context_of(batch))
    expected = []
    for k in (1, 2):
        weight, nats = model.get_parameter(f"training_only.ahead.ahead_{k}"), []
        logits = model.softcap(hidden @ weight.T)
        for row, tokens in enumerate(batch.inputs):
            for t in range(len(tokens) - k):
                if 1 not in tokens[t + 1 : t + k + 1]:  # no other document begins
                    nats.append(cross_entropy(logits[row, t], batch.targets[row, t + k]))
        assert len(nats) < batch.inputs.numel() - k * len(batch.inputs)
        expected.append(torch.stack(nats).mean())
    _, parts, _ = value_of(objective, model, batch)
    torch.testing.assert_close(parts["ahead"], 0.2 * (expected[0] + expected[1]) / 2)


def test_heads_begin_at_zero_and_leave_no_trace():
    """From zero: every token is as likely, so a head costs ln 64, and its gradient reaches no weight of the model."""
    objective = Objective(terms={"ahead": MultiToken(heads=1, weight=0.2)})
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    before = set(model.state_dict())
    attach(model, objective.heads(model), made.SEED)
    _, with_heads = made.gradients(made.running(objective), model, [batch])
    assert float(value_of(objective, model, batch)[1]["ahead"]) == pytest.approx(0.2 * 4.158883, rel=1e-5)
    assert with_heads.pop("training_only.ahead.ahead_1").abs().sum() > 0
    kept = shed(model, dict(model.state_dict()))
    assert set(kept) == set(model.state_dict()) == before
    _, plain = made.gradients(made.running(Objective()), model, [batch])
    assert plain.keys() == with_heads.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(with_heads[name], gradient)


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_a_span_is_compared_with_the_rest(layer):
    """All rows share a span. Block 1 is walked twice: its last visit counts."""
    objective = Objective(terms={"span": LinearSpan(**{**SPAN, "layer": layer})})
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    model.set_plan("looped")
    seen = []
    target = model.final_norm if layer < 0 else model.blocks[layer]
    hook = target.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0] if layer < 0 else output))
    walked(model, batch)
    hook.remove()
    assert len(seen) == (2 if layer == 1 else 1)
    _, parts, given = value_of(objective, model, batch)
    places = given.facts[0][0] - torch.arange(2) * 24
    first, before, end, last = places[:, 0].tolist()
    assert (first, last) == (0, 23) and torch.equal(places[:, 0], places[:, 1])
    a, s = before + 1, end - before - 1
    assert 1 <= s <= 12 and 1 <= a <= 24 - s - 1
    h = seen[-1]
    context = (h[:, before] - h[:, 0]) + (h[:, 23] - h[:, end])
    cosine = cosine_similarity(context, h[:, end] - h[:, before], dim=-1)
    torch.testing.assert_close(parts["span"], 0.3 * (1 - cosine).mean())
    torch.testing.assert_close(context + (h[:, end] - h[:, before]), h[:, 23] - h[:, 0])


def test_every_packed_document_has_a_span_of_its_own_where_it_has_room():
    term, batch = LinearSpan(**SPAN), made.packed(0)  # 20, 3 and 25 tokens
    seen = set()
    for seed in range(40):
        (places, weights), count = term.prepare(batch, lambda seed=seed: torch.Generator().manual_seed(seed))
        assert weights.tolist() == [1.0, 0.0, 1.0] and count == [2.0]
        for column, (start, end) in ((0, (0, 20)), (2, (23, 48))):
            first, before, after, last = places[:, column].tolist()
            assert first == start and last == end - 1 and start <= before < after <= last
            seen.add((before - start, after - start, column))
    assert len(seen) > 50  # spans differ by draw and by document


@pytest.mark.parametrize(("fraction", "on"), [(0.0, False), (0.39, False), (0.4, True), (1.0, True)])
def test_the_start_of_the_span_loss_is_heard(fraction, on):
    model, batch = tiny_model(scramble=0.1), made.rows(0)
    term = LinearSpan(**{**SPAN, "start": 0.4})
    _, parts, _ = value_of(Objective(terms={"span": term}), model, batch, Position(1, fraction))
    assert (float(parts["span"]) != 0.0) is on


@pytest.mark.parametrize(
    ("length", "share", "fits"), [(64, 1.0, False), (64, 0.97, True), (3, 0.1, False), (4, 0.5, True)]
)
def test_a_span_without_room_is_refused(length, share, fits):
    term = LinearSpan(**{**SPAN, "max_span_fraction": share})
    reasons = list(Objective(terms={"span": term}).refusals([length]))
    assert (reasons == []) is fits
    if not fits:
        assert f"sequences of {length} tokens" in reasons[0] and reasons[0].startswith("train.loss.terms.span: a span")


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"layer=4: the blocks are 0\.\.3"):
        Objective(terms={"span": LinearSpan(**{**SPAN, "layer": 4})}).heads(tiny_model())
    with pytest.raises(ValueError, match="needs the bytes of the tokens"):
        Objective(weights=ByteWeights(power=1.0, most=None, spaces=True)).run(1, None)
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        Objective(label_smoothing=1.0)
    with pytest.raises(ValueError, match="heads=0"):
        MultiToken(heads=0, weight=0.2)
    with pytest.raises(ValueError, match="coefficient=0"):
        ZLoss(coefficient=0.0)
    assert "head 3 has nothing to predict" in next(MultiToken(heads=3, weight=0.2).refusals([3, 64]))


def test_several_terms_add_up():
    objective = made.everything()
    model, batch = made.model_for(objective), made.packed(1)
    value, parts, _ = value_of(objective, model, batch)
    assert set(parts) == {"cross_entropy", "z", "multi_token", "span"}
    main = Objective(weights=objective.weights, label_smoothing=0.1)
    torch.testing.assert_close(
        value, value_of(main, model, batch)[0] + parts["z"] + parts["multi_token"] + parts["span"]
    )
    assert all(float(part) != 0.0 for part in parts.values())


def test_micro_batches_change_no_gradient():
    """But for spans, of which each micro-batch has one of its own."""
    objective = made.everything()
    del objective.terms["span"]
    model, batches = made.model_for(objective), [made.rows(0), made.rows(1)]
    whole = made.rows(0)._replace(
        inputs=torch.cat([batch.inputs for batch in batches]), targets=torch.cat([batch.targets for batch in batches])
    )
    (several, one), (expected, exact) = (made.gradients(made.running(objective), model, b) for b in (batches, [whole]))
    assert several == pytest.approx(expected, rel=1e-6)
    for name, gradient in exact.items():
        torch.testing.assert_close(one[name], gradient, rtol=1e-4, atol=1e-6)
    sums = [made.running(objective).token_weights[batch.targets].sum() for batch in batches]
    assert abs(sums[0] - sums[1]) > 1.0  # a mean of means would be another


def test_two_ranks_are_one_process(tmp_path):
    """Of unequal sums of weights, and with the same spans."""
    objective = made.everything()
    expected, exact = made.gradients(made.running(objective), made.model_for(objective), [made.rows(0), made.rows(1)])
    run_ranks(Path(made.__file__), 2, tmp_path / "out.pt")
    found, gradients = torch.load(tmp_path / "out.pt")
    assert found == pytest.approx(expected, rel=1e-6) and gradients.keys() == exact.keys()
    for name, gradient in exact.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_one_graph_serves_every_step():
    """Spans, weights and coefficients come in as tensors: nothing is compiled again when they change."""
    objective = made.everything()
    model, running = made.model_for(objective), made.running(objective)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(running.loss_of, backend="aot_eager", fullgraph=True)
    for step in range(3):
        batch = made.rows(step)
        (given,) = running.given([batch], Position(step, step / 10), ALONE)
        value, parts = made.loss_of(running, model, batch, given, compiled)
        value.backward()
        exact, named = made.loss_of(running, model, batch, given)
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-5)
        assert parts.keys() == named.keys()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize("batch", [made.rows(0), made.packed(0)], ids=["rows", "packed"])
def test_a_predictor_is_rolled_ahead_within_a_document(batch):
    term = LatentRollout(steps=2, latent=8, coefficient=0.5, regulariser=0.25, projections=3, sampled=20)
    objective = Objective(terms={"ahead": term})
    model = made.model_for(objective)
    hidden = model(batch.inputs, made.context_of(batch))
    encode, up, down = (model.get_parameter(f"training_only.ahead.{name}") for name in ("encode", "up", "down"))
    z = hidden @ encode.T
    ahead, expected = z, []
    for k in (1, 2):
        ahead = ahead + (ahead @ up.T).relu().square() @ down.T
        errors = [
            (ahead[row, t] - z[row, t + k]).square().mean()
            for row, tokens in enumerate(batch.inputs)
            for t in range(len(tokens) - k)
            if 1 not in tokens[t + 1 : t + k + 1]
        ]
        expected.append(torch.stack(errors).mean())
    _, parts, given = value_of(objective, model, batch)
    _, places, directions = given.facts[0]
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(3))
    samples, regulariser = z.flatten(0, 1)[places] @ directions, 0.0
    for index in range(17):
        t = 0.2 + 3.8 * index / 16
        weight = (1 if index in (0, 16) else 2) * 3.8 / 16 * math.exp(-t * t / 2)
        apart = ((t * samples).cos().mean(0) - math.exp(-t * t / 2)) ** 2 + (t * samples).sin().mean(0) ** 2
        regulariser = regulariser + weight * apart.mean()
    torch.testing.assert_close(parts["ahead"], 0.5 * (expected[0] + expected[1]) / 2 + 0.25 * regulariser)


def test_the_regulariser_is_least_for_a_normal_distribution():
    samples = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    assert sigreg(samples) < 1e-3 < sigreg(2.0 * samples) < sigreg(0.0 * samples)
    with pytest.raises(ValueError, match="steps=0"):
        LatentRollout(steps=0, latent=8, coefficient=1.0, regulariser=1.0, projections=3, sampled=20)

"""Test-time training: what learns when, from what, and what the options change."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pgolf.console import Silent
from pgolf.distributed import Group
from pgolf.kernels.attend import sdpa
from pgolf.model.bigram import Bigram
from pgolf.model.smear import ConvexSmear
from pgolf.score.ledger import EVERY_TOKEN
from pgolf.ttt.batches import document_batches
from pgolf.ttt.global_sgd import GlobalSGD
from pgolf.ttt.lora import BatchedLora
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import BENCH, lora, phased, run, score_first_sgd


class Notes(Silent):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


def clock(seconds):
    """A clock that moves on by `seconds` with every look."""
    time = [0.0]

    def now():
        time[0] += seconds
        return time[0] - seconds

    return now


def looped_model():
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    return model


def test_a_goes_on_in_its_chain_b_does_not():
    validation = documents([30, 30, 30, 30])
    model = looped_model()
    adapters = BatchedLora(model, 1, lora(), 0, "x")
    with torch.no_grad():
        adapters.up["0:q"].add_(1.0)
        adapters.down["0:q"].add_(1.0)
    again = BatchedLora(model, 1, lora(), 0, "x", adapters.learned())
    assert torch.equal(again.down["0:q"], adapters.down["0:q"]) and not again.up["0:q"].any()
    one = {"rows": 1, "phases": 0}
    fresh, _ = run(phased({"lr": 0.05}, **one), validation)
    warm = {
        chains: run(phased({"lr": 0.05, "warm_start": True}, chains=chains, **one), validation)[0] for chains in (1, 2)
    }
    order = fresh.ledger.per_document()["order"].argsort()
    nats = {name: s.ledger.per_document()["nats"][order] for name, s in {"fresh": fresh, **warm}.items()}
    # the first of a chain is as without; later ones differ
    assert (nats["fresh"] == nats[1]).tolist() == [True, False, False, False]
    assert (nats["fresh"] == nats[2]).tolist() == [True, True, False, False]


def test_the_first_a_may_be_given():
    validation = documents([20, 18, 16])
    model = looped_model()
    seen = []

    def drawn_as_ever(batch, phase):
        seen.append((batch.documents, phase))
        return BatchedLora(model, len(batch.documents), lora(), 0, f"ttt/lora/{batch.index}").learned()

    strategy = phased(phases=0, rows=2)
    strategy.initial_a = drawn_as_ever
    given, _ = run(strategy, validation)
    own, _ = run(phased(phases=0, rows=2), validation)
    assert (given.ledger.nats[1:] == own.ledger.nats[1:]).all()
    assert seen == [((0,), 0), ((1, 2), 0)] or seen == [(b.documents, 0) for b in document_batches([21, 19, 16], 2)]


def test_short_documents_learn_more_often():
    validation = documents([60, 12])
    usual, _ = run(phased(phases=0, rows=1), validation)
    short, _ = run(phased(phases=0, rows=1, short_chunks=[[20, 3]]), validation)
    long_document, short_document = slice(1, 60), slice(61, 72)
    assert np.allclose(usual.ledger.nats[long_document], short.ledger.nats[long_document])
    assert np.allclose(usual.ledger.nats[61:64], short.ledger.nats[61:64], atol=1e-5)
    assert (usual.ledger.nats[short_document] != short.ledger.nats[short_document]).any()


def test_the_rate_is_multiplied_and_sites_may_be_left_out():
    settings = lora(lr=0.02, lr_multiplier=0.75, targets=["k", "o", "mlp", "head"])
    assert settings.lr == pytest.approx(0.015)
    adapters = BatchedLora(looped_model(), 1, settings, 0, "x")
    assert {key.partition(":")[2] for key in adapters.down} == {"k", "o", "mlp", "head"}


def test_score_first_sgd_learns_from_what_it_scored_and_not_from_its_last_chunk():
    validation = documents([200])
    validation.tokens[1:] = 5 + np.arange(199) % 3
    still, _ = run(score_first_sgd({"lr": 0.0}), validation)
    learned, model = run(score_first_sgd({"lr": 0.05}), validation)
    assert learned.ledger.complete() and learned.documents == "joined"
    assert (learned.ledger.nats[1:33] == still.ledger.nats[1:33]).all()
    assert learned.ledger.nats[150:].sum() < 0.7 * still.ledger.nats[150:].sum()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    one_chunk, untouched = run(score_first_sgd({"chunk_tokens": 4096}), validation)
    assert one_chunk.ledger.complete()
    assert all(torch.equal(a, b) for a, b in zip(untouched.parameters(), looped_model().parameters(), strict=True))


def test_joined_documents_are_seen_isolated_ones_are_not():
    validation = documents([20, 20])
    other = documents([20, 20])
    other.tokens[1:20] = validation.tokens[1:20] % 50 + 5
    for kept, same in (("isolated", True), ("joined", False)):
        one, two = (run(score_first_sgd({"lr": 0.0}, documents=kept), text)[0] for text in (validation, other))
        assert np.allclose(one.ledger.nats[21:], two.ledger.nats[21:]) == same
        assert len(one.ledger.per_document()["nats"]) == 2


def test_the_published_rates_of_a_global_phase():
    settings = {"lr": 0.02, "momentum": 0.9, "chunk_tokens": 4, "sequence_tokens": 4, "epochs": 1, "clip_norm": None}
    sgd = GlobalSGD(**settings)
    assert [round(sgd.rate(chunk, 4), 6) for chunk in range(3)] == [0.02, 0.015, 0.005]
    assert sgd.rate(0, 1) == 0.02
    warm = GlobalSGD(**settings, warmup_chunks=3, warmup_start_lr=0.002)
    assert [round(warm.rate(chunk, 7), 6) for chunk in range(6)] == [0.002, 0.011, 0.02, 0.02, 0.015, 0.005]


@pytest.mark.parametrize("boundaries", ["both", "documents", "rows"])
def test_a_step_is_sgd_on_the_mean_loss_with_the_boundaries_named(boundaries):
    tokens = torch.tensor([9, 8, 7, 6, 1, 5, 4, 3, 2, 9, 8, 7, 6])
    segments = {
        "both": [(0, 4), (4, 8), (8, 12)],
        "documents": [(0, 4), (4, 8), (8, 12)],
        "rows": [(0, 4), (4, 8), (8, 12)],
    }[boundaries]
    if boundaries == "documents":  # pieces are measured from the start of a document
        tokens[4], tokens[5] = 5, 1
        segments = [(0, 4), (4, 5), (5, 9), (9, 12)]
    if boundaries == "both":
        tokens[4], tokens[6] = 5, 1
        segments = [(0, 4), (4, 6), (6, 8), (8, 12)]
    sgd = GlobalSGD(
        lr=0.1, momentum=0.0, chunk_tokens=12, sequence_tokens=4, epochs=1, clip_norm=None, boundaries=boundaries
    )
    trained, expected = looped_model(), looped_model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    assert sgd.train(trained, optimizer, 0.1, tokens, ALONE, sdpa) == 1
    losses = [
        torch.nn.functional.cross_entropy(
            expected.logits(expected(tokens[None, start:end]))[0], tokens[start + 1 : end + 1], reduction="sum"
        )
        for start, end in segments
    ]
    (sum(losses) / 12).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


class Recorder(Group):
    """A process that keeps its gradients to itself."""

    def mean_(self, tensors):
        self.gradients = [tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("primes", [None, [36313, 27191], [36313, 27191, 51497]])
@pytest.mark.parametrize("bos_id", [None, 1])
def test_rows_read_what_stands_before_them_whichever_process_has_them(primes, bos_id):
    """A smear reads the token before a row, and that token's pair or triple those before it."""
    pairs = {"hash": "xor", "buckets": 32, "dim": 4, "first": "reserved", "table_std": 0.3, "projection_gain": 1.0}
    bigram = Bigram(**pairs, primes=primes, bos_id=bos_id, scale=None) if primes else None
    smear = partial(ConvexSmear, weighs="previous", start=0.0, after_norm=True, bos_id=bos_id)
    sgd = GlobalSGD(lr=0.1, momentum=0.0, chunk_tokens=24, sequence_tokens=4, epochs=1, clip_norm=None, rows_per_step=6)
    tokens = torch.randint(4, 64, (25,), generator=torch.Generator().manual_seed(0))

    def gradients(rank, world_size):
        model = tiny_model(scramble=0.3, bigram=bigram, smear=smear)
        group = Recorder(rank, world_size, torch.device("cpu"))
        sgd.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.1, tokens, group, sdpa)
        return group.gradients

    for alone, *parts in zip(gradients(0, 1), *(gradients(rank, 3) for rank in range(3)), strict=True):
        torch.testing.assert_close(sum(parts) / 3, alone, rtol=1e-4, atol=1e-5)


def test_steps_of_several_rows_and_rows_that_do_not_fill_a_chunk():
    sgd = GlobalSGD(lr=0.1, momentum=0.0, chunk_tokens=14, sequence_tokens=4, epochs=2, clip_norm=1.0, rows_per_step=2)
    model = looped_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert sgd.train(model, optimizer, 0.1, torch.arange(15) + 4, ALONE, sdpa) == 4  # 3 rows in 2 steps, twice


@pytest.mark.parametrize(
    "strategy", [phased(max_seconds=10.5, rows=1, phases=1, prefix_docs=1), score_first_sgd(max_seconds=9.5)]
)
def test_when_the_time_is_up_the_rest_is_left_out_by_name(strategy):
    validation = documents([40, 38, 36, 34])
    notes = Notes()
    scorer, _ = run(strategy, validation, bench=replace(BENCH, console=notes, clock=clock(1.0)))
    found, total, rows = scorer.coverage, scorer.total(), scorer.ledger.per_document()
    assert found.policy == "max_seconds" and 0 < found.documents < 4 and found.left_out > 0
    assert total.tokens + found.left_out == len(validation.tokens) - 1
    assert np.isfinite(rows["nats"]).sum() == found.documents
    assert any("at this pace scoring takes" in line and "ttt.max_seconds" in line for line in notes.said)
    assert f"{found.documents} of 4 documents" in notes.said[-1] and "no score" in notes.said[-1]


def test_enough_time_changes_nothing():
    validation = documents([40, 38, 36, 34])
    usual, _ = run(phased(), validation)
    notes = Notes()
    watched, _ = run(phased(max_seconds=1e6), validation, bench=replace(BENCH, console=notes))
    assert (usual.ledger.nats[1:] == watched.ledger.nats[1:]).all()
    assert watched.coverage.policy == EVERY_TOKEN and not any("max_seconds" in line for line in notes.said)

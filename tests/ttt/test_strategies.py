"""Evaluation and test-time training: coverage, equality with plain forwards, learning, order, processes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from pgolf.console import Silent
from pgolf.kernels.packing import Packing, build_cu_seqlens
from pgolf.model.context import Context
from pgolf.model.smear import SmearGate
from pgolf.score.scorer import Scorer
from pgolf.ttt.fixed import Chunked, Sliding
from pgolf.ttt.lora import BatchedLora
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import BENCH, lora, phased, run, score_first_sgd


def plain_nats(validation, context):
    """Each position's cost from its own forward over its last `context` tokens."""
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    nats = {}
    ends = [*validation.document_starts[1:] + 1, len(validation.tokens)]
    tokens = torch.from_numpy(validation.tokens.astype("int64"))
    for start, end in zip(validation.document_starts, ends, strict=True):
        for p in range(start + 1, end):
            visible = tokens[context(start, p) : p][None]
            nats[p] = -torch.log_softmax(model.logits(model(visible))[0, -1], dim=-1)[tokens[p]].item()
    return nats


@pytest.mark.parametrize("lengths", [[30, 7, 18], [2], [40, 2, 2, 33]])
def test_chunked_is_a_forward_per_piece(lengths):
    validation = documents(lengths)
    scorer, _ = run(Chunked(sequence_tokens=8, rows=3), validation)
    expected = plain_nats(validation, lambda start, p: start + (p - 1 - start) // 8 * 8)
    assert scorer.ledger.complete()
    for p, cost in expected.items():
        assert scorer.ledger.nats[p] == pytest.approx(cost, abs=2e-4)


def test_sliding_sees_at_least_the_window_less_the_stride():
    validation = documents([30, 7, 18])
    scorer, _ = run(Sliding(sequence_tokens=12, stride=4, rows=3), validation)
    assert scorer.ledger.complete()

    def context(start, p):
        offset = p - start - 1
        if offset < 12:
            return start
        last = min((offset - 12) // 4 * 4 + 16, {0: 30, 30: 7, 37: 17}[int(start)] - (start == 37) * 0)
        return max(start, start + last - 12)

    expected = plain_nats(validation, context)
    assert scorer.ledger.nats[5] == pytest.approx(expected[5], abs=2e-4)
    assert scorer.ledger.nats[20] == pytest.approx(expected[20], abs=2e-4)


def test_adapters_that_have_learned_nothing_change_nothing():
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    adapters = BatchedLora(model, 3, lora(), 0, "x")
    assert len(adapters.down) == len(model.plan.passes) * 5 + 1
    validation = documents([30, 7, 18])
    still, _ = run(phased({"lr": 0.0}, phases=0), validation)
    whole, _ = run(Chunked(sequence_tokens=64, rows=4), documents([30, 7, 18]))
    for p in range(1, 20):
        assert still.ledger.nats[p] == pytest.approx(whole.ledger.nats[p], abs=2e-4)


def test_adapter_delta_by_its_formula_for_the_first_documents():
    model = tiny_model()
    adapters = BatchedLora(model, 3, lora(alpha=5.0), 0, "x")
    torch.nn.init.normal_(adapters.up["0:q"])
    x = torch.randn(2, 6, 32)
    expected = torch.stack([x[i] @ adapters.down["0:q"][i].T @ adapters.up["0:q"][i].T * 2.5 for i in range(2)])
    torch.testing.assert_close(adapters.delta(0, "q", x), expected)
    assert BatchedLora(model, 1, lora(targets=["k"]), 0, "x").delta(0, "q", x) is None
    bound = 1 / math.sqrt(32)
    assert adapters.down["0:q"].abs().max() <= bound


def test_adapters_learn_within_a_document():
    """A document that repeats itself gets cheaper when the adapter learns; weights of the model stay."""
    validation = documents([120, 120])
    validation.tokens[1:120] = 9 + validation.tokens[1:120] * 0 + torch.arange(119).numpy().astype("uint16") % 3
    before = {name: value.clone() for name, value in tiny_model(scramble=0.1).state_dict().items()}
    still, _ = run(phased({"lr": 0.0}, phases=0), validation)
    learned, model = run(phased({"lr": 0.03}, phases=0), validation)
    assert learned.ledger.nats[60:120].sum() < 0.8 * still.ledger.nats[60:120].sum()
    assert (learned.ledger.nats[1:9] == still.ledger.nats[1:9]).all()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_phases_change_the_model_between_documents_only():
    validation = documents([40, 38, 36, 34, 20, 18, 16, 14])
    scorer, model = run(phased(), validation)
    assert scorer.ledger.complete()
    rows = scorer.ledger.per_document()
    assert rows["phase"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2]
    fresh = tiny_model(scramble=0.1)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    without, _ = run(phased(phases=0), validation)
    first_phase = rows["phase"] == 0
    other = without.ledger.per_document()["nats"]
    assert (rows["nats"][first_phase] == other[first_phase]).all()
    assert (rows["nats"][~first_phase] != other[~first_phase]).all()


def test_phases_that_find_no_document_or_no_room_say_so():
    said = []

    class Console(Silent):
        def say(self, message):
            said.append(message)

    validation = documents([40, 38, 20, 18])
    for strategy in (phased(phases=6, prefix_docs=6), phased(rows=4), phased(sgd_changes={"chunk_tokens": 4096})):
        model = tiny_model(scramble=0.1)
        model.set_plan("looped")
        scorer = Scorer(validation, ALONE)
        strategy.run(model, scorer, replace(BENCH, console=Console()))
        assert scorer.ledger.complete()
    assert any("only 0 of 2 global phases" in message for message in said)
    assert any("0 steps" in message for message in said)


def test_the_same_bits_again_and_another_seed_gives_others():
    validation = documents([40, 38, 20, 18])
    first, _ = run(phased(), validation)
    again, _ = run(phased(), validation)
    assert (first.ledger.nats[1:] == again.ledger.nats[1:]).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: phased(phases=-1), "ttt.phases"),
        (lambda: phased(phases=99), "ttt.phases=99 needs"),
        (lambda: phased(chunk=30), "shorter than ttt.chunk"),
        (lambda: lora(targets=["q", "x"]), "choose some of q, k, v, o, mlp, head"),
        (lambda: lora(rank=0), "rank=0"),
        (lambda: phased(sgd_changes={"sequence_tokens": 33}), "must lie between"),
        (lambda: phased(sgd_changes={"rows_per_step": 0}), "rows_per_step=0"),
        (lambda: phased(sgd_changes={"clip_norm": 0.0}), "null for no clipping"),
        (lambda: phased(sgd_changes={"warmup_chunks": -1}), "warmup_chunks=-1 at least 0"),
        (lambda: phased(chains=0), "chains at least 1"),
        (lambda: phased(max_seconds=0), "max_seconds=0 must be above 0"),
        (lambda: phased(short_chunks=[[20, 4], [10, 6]]), "must ascend"),
        (lambda: phased(short_chunks=[[20]]), "give pairs"),
        (lambda: phased(short_chunks=[[20, 25]]), "shorter than ttt.chunk=25"),
        (lambda: score_first_sgd(stride=17), "stride=17"),
        (lambda: Chunked(sequence_tokens=8, rows=1, batch_tokens=12), "not a multiple"),
        (lambda: Chunked(sequence_tokens=8, rows=1, coverage="whole_batches"), "whole_batches needs ttt.batch_tokens"),
        (lambda: Chunked(sequence_tokens=8, rows=1, documents="packed"), "packed needs ttt.batch_tokens"),
        (lambda: Chunked(sequence_tokens=0, rows=1), "at least 1"),
        (lambda: Sliding(sequence_tokens=8, stride=9, rows=1), "stride=9"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("bos_id", [1, None])
def test_packed_batches_are_one_flat_row_in_which_a_smear_gate_reads_on(bos_id):
    """The published diagnostic evaluation: boundaries at documents and 8 tokens after a document's or batch's start."""
    validation = documents([30, 7, 18])
    parts = {"smear": partial(SmearGate, width=4, bos_id=bos_id), "scramble": 0.1}
    model = tiny_model(**parts)
    strategy = Chunked(sequence_tokens=8, rows=1, batch_tokens=16, documents="packed")
    scorer, _ = run(strategy, validation, model=model)
    assert scorer.ledger.complete() and scorer.documents == "packed"
    tokens = torch.from_numpy(validation.tokens.astype("int64"))
    for start in range(0, len(tokens) - 1, 16):
        row = tokens[start : start + 17]
        boundaries = build_cu_seqlens((row[:-1] == 1).nonzero()[:, 0].numpy(), len(row) - 1, 8, 64)
        context = Context(packing=Packing.from_cu_seqlens(boundaries))
        with torch.no_grad():
            logits = model.logits(model(row[None, :-1], context), context)[0]
        expected = torch.nn.functional.cross_entropy(logits, row[1:], reduction="none")
        got = torch.from_numpy(scorer.ledger.nats[start + 1 : start + len(row)]).float()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    isolated, _ = run(Chunked(sequence_tokens=8, rows=3, batch_tokens=16), validation, model=tiny_model(**parts))
    assert not torch.allclose(*(torch.from_numpy(one.ledger.nats[1:]) for one in (scorer, isolated)))

"""What a scored stage writes down, and a signal in the middle of it."""

import math
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pgolf import scoring
from pgolf.model.dropout import NormPercentile
from pgolf.record import RunRecord, Untracked
from pgolf.report.runs import read_documents, read_events
from pgolf.score.scorer import Scorer
from pgolf.train import interrupts
from pgolf.ttt.fixed import Chunked
from tests.support import ALONE, documents, tiny_model
from tests.ttt.strategies import BENCH, run
from tests.ttt.test_adapting import Notes

LENGTHS = [40, 3, 36, 17]


def shop(directory, notes=None, compile_scoring=False):
    """As much of a Workshop as scoring needs."""
    record = RunRecord(directory, {}, True, Untracked())
    notes = notes or Notes()
    return SimpleNamespace(
        validation=documents(LENGTHS),
        group=ALONE,
        record=record,
        directory=directory,
        console=notes,
        recipe=SimpleNamespace(
            train=SimpleNamespace(micro_batch_tokens=32, sequence_tokens=16), compile_scoring=compile_scoring
        ),
        bench=lambda stage: replace(BENCH, title=stage, console=notes, log=record.log),
    )


class Signalled:
    """A strategy that gets a signal when it begins."""

    def run(self, model, scorer, bench):
        os.kill(os.getpid(), signal.SIGINT)
        Chunked(sequence_tokens=8, rows=2).run(model, scorer, bench)


def test_the_table_has_a_row_for_every_document_and_adds_up(tmp_path):
    found = scoring.score(shop(tmp_path), "post_quant", tiny_model(scramble=0.1))
    scoring.score(shop(tmp_path), "final", tiny_model(scramble=0.2), Chunked(sequence_tokens=8, rows=2))
    with np.load(tmp_path / "scores.npz") as file:
        columns = {name: file[name] for name in file.files}
    assert set(columns) == {
        *("document", "tokens", "bytes", "order", "phase", "length_bucket", "nats_post_quant", "nats_final")
    }
    assert columns["tokens"].tolist() == [40, 3, 36, 16]  # each is charged for the first token of the next
    assert columns["length_bucket"].tolist() == [64, 16, 64, 16]
    assert found["val_loss"] == pytest.approx(math.fsum(columns["nats_post_quant"]) / columns["tokens"].sum())
    assert set(read_documents(tmp_path / "scores.npz").nats) == {"post_quant", "final"}


def test_positions_hold_every_token_once():
    scorer: Scorer
    scorer, _ = run(Chunked(sequence_tokens=8, rows=2), documents(LENGTHS))
    found = scoring.by_position(scorer.ledger, documents(LENGTHS))
    total = scorer.total()
    assert [row["to"] for row in found] == [16, 32, 64]
    assert [row["tokens"] for row in found] == [16 + 3 + 16 + 16, 16 + 16, 8 + 4]
    assert sum(row["bytes"] for row in found) == total.bytes
    assert math.fsum(row["nats"] for row in found) == pytest.approx(total.nats)


def test_a_signal_ends_scoring_with_a_part_that_is_no_result(tmp_path):
    notes = Notes()
    with pytest.raises(interrupts.Interrupted):
        scoring.score(shop(tmp_path, notes), "final", tiny_model(scramble=0.1), Signalled())
    assert not (tmp_path / "scores.npz").exists()
    (part,) = [event for event in read_events(tmp_path / "metrics.jsonl")[0] if event["event"] == "partial"]
    assert part["policy"] == "interrupted" and part["left_out"] > 0 and part["num_documents"] == 4
    assert f"{part['bpb_of_part']:.4f} bits per byte over this part" in notes.said[-1]
    assert "begins anew" in notes.said[-1] and "no score of the validation text" in notes.said[-2]
    again = scoring.score(shop(tmp_path), "final", tiny_model(scramble=0.1))
    assert again["coverage"]["left_out"] == 0


def test_lengths_fall_into_doubling_buckets():
    lengths = np.array([0, 1, 16, 17, 32, 33, 100_000])
    assert scoring.bucket(lengths).tolist() == [16, 16, 16, 32, 32, 64, 131072]


def test_scores_in_the_middle_of_training_leave_out_what_training_drops(tmp_path):
    dropping, plain = (tiny_model(scramble=0.1, mlp_dropout=part) for part in (NormPercentile(quantile=0.5), None))
    assert scoring.validate(shop(tmp_path), dropping) == scoring.validate(shop(tmp_path), plain.eval())
    assert dropping.training and not plain.training  # each goes on as it was


def test_a_compiled_stage_says_how_many_graphs_it_waited_for(tmp_path, monkeypatch):
    found = iter([2, 5, 5])
    monkeypatch.setattr(scoring, "graphs", lambda: next(found))
    notes = Notes()
    result = scoring.score(shop(tmp_path, notes, compile_scoring=True), "final", tiny_model(scramble=0.1))
    assert result["graphs"] == 3 and any("3 graph(s) were compiled" in line for line in notes.said)

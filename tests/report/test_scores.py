"""Bits per byte by length and position, paired differences, and the way the score came about."""

import json
import math

import numpy as np
import pytest

from pgolf.report import adaptation, scores
from pgolf.report.comparison import make_groups
from pgolf.report.runs import find_runs, read_run

from .fake_runs import fake_config, fake_run


def two_groups(tmp_path, **changes):
    """A group and one whose documents all cost a tenth less."""
    fake_run(tmp_path / "a", seed=1, bpb=1.25)
    fake_run(tmp_path / "b", seed=1, bpb=1.125, name="better", config=fake_config(1, optim={"x": 1}), **changes)
    return make_groups(find_runs([tmp_path]).groups())


def test_lengths_hold_every_document_once_and_add_up(tmp_path):
    documents = read_run(fake_run(tmp_path / "run", bpb=1.25)).documents()
    table = scores.by_length(documents)
    assert sum(int(row[1].replace(",", "")) for row in table.rows) == len(documents.document)
    assert sum(int(row[2].replace(",", "")) for row in table.rows) == documents.num_bytes.sum()
    column = table.headers.index("final")
    nats = sum(float(row[column]) * int(row[2].replace(",", "")) for row in table.rows) * math.log(2)
    assert nats == pytest.approx(documents.nats["final"].sum(), rel=1e-4)
    change, mean = table.headers.index("final minus compressed"), table.headers.index("mean over documents")
    row = table.rows[-2]
    chosen = (documents.tokens <= int(row[0].split()[-1].replace(",", ""))) & (
        documents.tokens > int(table.rows[-3][0].split()[-1].replace(",", ""))
    )
    each = documents.bpb("final")[chosen] - documents.bpb("post_quant")[chosen]
    assert float(row[mean]) == pytest.approx(each.mean(), abs=1e-5)
    assert all(float(row[change]) < 0 for row in table.rows[-2:])  # the final stage is better, most of all on long ones


def test_positions_are_read_from_the_summary(tmp_path):
    run = read_run(fake_run(tmp_path / "run", bpb=1.25))
    table = scores.by_position(run)
    assert [row[0] for row in table.rows] == ["up to 16", "up to 32"]
    assert float(table.rows[0][-1]) == pytest.approx(1.5, rel=1e-3)
    assert float(table.rows[1][-1]) == pytest.approx(1.0, rel=1e-3)
    for stage in run.summary["stages"].values():
        del stage["positions"]
    assert scores.by_position(run) is None


def test_a_variant_minus_the_first_group_is_paired_by_document(tmp_path):
    (table,) = scores.length_comparison(two_groups(tmp_path))
    assert table.rows[0][:2] == ["better", "all"]
    assert float(table.rows[0][3]) == pytest.approx(-0.125, abs=1e-5)
    low, high = map(float, table.rows[0][4].split(" .. "))
    assert low <= -0.125 <= high and high - low < 0.02  # every document costs a tenth less
    assert sum(int(row[2]) for row in table.rows[1:]) == int(table.rows[0][2])


def test_the_score_so_far_ends_at_the_score(tmp_path):
    """In the order of scoring, whichever process did it."""
    directory = fake_run(tmp_path / "run", bpb=1.25)
    arrays = dict(np.load(directory / "scores.npz"))
    arrays["order"] = arrays["order"][::-1].copy()
    np.savez(directory / "scores.npz", **arrays)
    run = read_run(directory)
    table = scores.as_scored(run)
    assert [row[0] for row in table.rows] == [f"{12 * part}" for part in range(1, 11)]
    documents = run.documents()
    last = slice(-12, None)  # the first tenth that was scored
    bpb = documents.nats["final"][last].sum() / math.log(2) / documents.num_bytes[last].sum()
    assert float(table.rows[0][table.headers.index("final")]) == pytest.approx(bpb, abs=1e-5)
    assert float(table.rows[-1][table.headers.index("final")]) == pytest.approx(1.25, abs=1e-5)
    assert table.rows[-1][2] == "0" and table.rows[0][2] == "2"  # the phases of the fake run follow the text
    del arrays["order"]
    np.savez(directory / "scores.npz", **arrays)
    assert scores.as_scored(read_run(directory)) is None


def test_other_documents_are_not_compared(tmp_path):
    (table,) = scores.length_comparison(two_groups(tmp_path, num_documents=60))
    assert table.rows == [["better", "all", "", "other documents: not comparable", "", ""]]


def test_the_gain_of_all_batches_is_that_of_the_whole_text(tmp_path):
    run = read_run(fake_run(tmp_path / "run"))
    events = adaptation.score_events(run)
    assert [event["event"] for event in events] == ["score", "score", "phase", "score", "score"]  # not the first try
    gains = adaptation.gain_so_far(run, [event for event in events if event["event"] == "score"])
    stages = run.summary["stages"]
    assert sum(gains) == pytest.approx(stages["post_quant"]["val_bpb"] - stages["final"]["val_bpb"])
    assert "no preview" in adaptation.no_preview(run)
    assert adaptation.trajectory(run, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_names_no_documents_has_a_score_and_no_gain(tmp_path):
    directory = fake_run(tmp_path / "run")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("scored", None)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(directory)
    events = [event for event in adaptation.score_events(run) if event["event"] == "score"]
    assert adaptation.gain_so_far(run, events) == []
    assert adaptation.trajectory(run, tmp_path / "x.png") is not None
    (directory / "metrics.jsonl").write_text("")
    assert adaptation.trajectory(run, tmp_path / "y.png") is None and adaptation.no_preview(run) is None


def test_documents_of_any_length_fall_into_a_bucket():
    lengths = np.array([0, 1, 16, 17, 32, 33, 100_000])
    documents = type("Documents", (), {"tokens": lengths})()
    found = {longest: lengths[chosen].tolist() for longest, chosen in scores._buckets(documents)}
    assert found == {16: [0, 1, 16], 32: [17, 32], 64: [33], 131072: [100_000]}

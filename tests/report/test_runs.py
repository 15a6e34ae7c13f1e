"""Reading run directories: what counts, what does not and why."""

import json
import math

import numpy as np
import pytest

from pgolf.digest import group_digest
from pgolf.errors import UserError
from pgolf.report.configuration import MISSING, difference, flatten
from pgolf.report.runs import find_runs, read_documents, read_events

from .fake_runs import NUM_DOCUMENTS, fake_config, fake_run


def test_a_run_is_read_whole(tmp_path):
    directory = fake_run(tmp_path / "run", seed=7, bpb=1.31)
    (run,) = find_runs([directory]).runs
    assert (run.seed, run.name, run.directory) == (7, "mini", directory)
    assert run.val_bpb == pytest.approx(1.31, rel=1e-12)
    documents = run.documents()
    assert len(documents.document) == NUM_DOCUMENTS
    total = documents.nats["final"].sum() / documents.num_bytes.sum() / math.log(2)
    assert total == pytest.approx(run.val_bpb)
    events, problems = run.events()
    assert problems == [] and {event["event"] for event in events} == {"step", "stage", "score", "phase"}


def test_seeds_of_one_recipe_are_one_group(tmp_path):
    for seed in (1234, 0, 42):
        fake_run(tmp_path / "a" / f"seed{seed}", seed=seed)
        changed = fake_config(seed, optim={"matrix": {"lr": 0.02}})
        fake_run(tmp_path / "b" / f"seed{seed}", seed=seed, config=changed)
    groups = find_runs([tmp_path]).groups()
    assert [[run.seed for run in runs] for runs in groups.values()] == [[0, 42, 1234]] * 2


def test_a_directory_reached_twice_counts_once(tmp_path):
    fake_run(tmp_path / "all" / "one")
    assert len(find_runs([tmp_path, tmp_path / "all" / "one", tmp_path / "all"]).runs) == 1


def test_a_run_that_left_positions_out_is_told_apart_from_a_damaged_one(tmp_path):
    directory = fake_run(tmp_path / "run")
    summary = json.loads((directory / "summary.json").read_text())
    summary["val_bpb"] = None
    summary["stages"]["final"]["coverage"] = {"policy": "max_seconds", "left_out": 1200}
    (directory / "summary.json").write_text(json.dumps(summary))
    found = find_runs([directory])
    assert found.runs == [] and "no score of the validation text" in found.problems[0].reason
    assert "1,200 positions are left out (max_seconds)" in found.problems[0].reason


def _damage(directory, kind):
    if kind == "running":
        (directory / "status.json").write_text('{"state": "running", "stage": "train"}')
    elif kind == "failed":
        status = {"state": "failed", "stage": "quant", "error": "no memory"}
        (directory / "status.json").write_text(json.dumps(status))
    elif kind == "no status":
        (directory / "status.json").unlink()
    elif kind == "torn summary":
        (directory / "summary.json").write_text('{"val_bpb": 1.')
    elif kind == "list":
        (directory / "summary.json").write_text("[]")
    elif kind == "no config":
        (directory / "config.json").unlink()
    else:
        summary = json.loads((directory / "summary.json").read_text())
        if kind == "nan":
            summary["val_bpb"] = math.nan
        else:
            summary["stages"]["final"]["bytes"] = 0
        (directory / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("running", "unfinished: status.json says running in stage train"),
        ("failed", "failed in stage quant: no memory"),
        ("no status", "before it wrote status.json"),
        ("torn summary", "not valid JSON"),
        ("list", "should hold a JSON object"),
        ("no config", "config.json"),
        ("nan", "val_bpb is nan"),
        ("zero bytes", "stages.final.bytes is 0"),
    ],
)
def test_what_does_not_count_is_listed_with_the_reason(tmp_path, kind, reason):
    fake_run(tmp_path / "good", seed=0)
    bad = fake_run(tmp_path / "bad", seed=42)
    _damage(bad, kind)
    found = find_runs([tmp_path])
    assert [run.seed for run in found.runs] == [0]
    (problem,) = found.problems
    assert problem.directory == bad and reason in problem.reason


def test_a_job_that_died_at_once_is_listed(tmp_path):
    fake_run(tmp_path / "0")
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    found = find_runs([tmp_path])
    assert len(found.runs) == 1
    assert [problem.directory.name for problem in found.problems] == ["1"]


def test_paths_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no run directory in"):
        find_runs([tmp_path])


def test_a_torn_event_line_is_left_out_and_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "step", "step": 1}\n\n{"event": "st')
    events, problems = read_events(path)
    assert events == [{"event": "step", "step": 1}]
    assert len(problems) == 1 and "line 3" in problems[0]
    assert "missing" in read_events(tmp_path / "none.jsonl")[1][0]


def test_documents_are_sorted_and_half_scored_stages_dropped(tmp_path):
    path = tmp_path / "scores.npz"
    arrays = {
        "document": np.array([2, 0, 1]),
        "tokens": np.array([5, 6, 7]),
        "bytes": np.array([10, 0, 30]),
        "nats_pre_quant": np.array([1.0, np.nan, 2.0]),
        "nats_final": np.array([3.0, 1.0, 2.0]),
    }
    np.savez(path, **arrays)
    documents = read_documents(path)
    assert documents.document.tolist() == [0, 1, 2]
    assert documents.nats["final"].tolist() == [1.0, 2.0, 3.0]
    assert list(documents.nats) == ["final"]
    bpb = documents.bpb("final")
    assert math.isnan(bpb[0]) and bpb[1] == pytest.approx(2 / 30 / math.log(2))


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_damaged_scores_are_a_sentence(tmp_path, cut):
    path = fake_run(tmp_path / "run") / "scores.npz"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="damaged"):
        read_documents(path)


def test_scores_without_a_needed_array_are_refused(tmp_path):
    np.savez(tmp_path / "scores.npz", document=np.arange(2))
    with pytest.raises(UserError, match="no array tokens"):
        read_documents(tmp_path / "scores.npz")
    with pytest.raises(UserError, match="is missing"):
        read_documents(tmp_path / "other.npz")


def test_the_group_ignores_seed_names_and_absent_parts():
    one = fake_config(42)
    other = fake_config(7, name="else", paths={"runs": "/elsewhere"})
    other["gate"] = {"_target_": "pgolf.absent.absent"}
    other["model"]["adapter"] = {"_target_": "pgolf.absent.absent"}
    assert group_digest(one) == group_digest(other)
    assert difference([one, other]) == {}
    assert group_digest(one) != group_digest(fake_config(42, ttt={"seed": 1}))


def test_the_difference_is_exact():
    one = fake_config(1, optim={"lr": 0.02, "betas": [0.9, 0.95], "name": "muon"})
    other = fake_config(2, optim={"lr": 0.02, "betas": [0.9, 0.99], "nesterov": True})
    assert difference([one, other]) == {
        "optim.betas": ["[0.9, 0.95]", "[0.9, 0.99]"],
        "optim.name": ["muon", MISSING],
        "optim.nesterov": [MISSING, "true"],
    }
    assert flatten({"a": {"b": {}, "c": [1]}}) == {"a.b": {}, "a.c": [1]}

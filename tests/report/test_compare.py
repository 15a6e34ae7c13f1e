"""`pgolf compare`: verdicts, refusals, and the text and JSON that come out."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from pgolf import register
from pgolf.digest import group_digest
from pgolf.errors import UserError
from pgolf.report import statistics
from pgolf.report.compare import main
from pgolf.report.comparison import Group, bucket, compare_groups, make_groups, verdicts
from pgolf.report.matched import matched
from pgolf.report.runs import find_runs, read_run

from .fake_runs import fake_config, fake_run

SEEDS = (42, 0, 1234)


def write_group(root, name, values, **changes):
    """A folder with one run per seed; `values` are the bits per byte."""
    for seed, bpb in zip(SEEDS, values, strict=False):
        config = fake_config(seed, model={"qk_gain": name})
        fake_run(root / name / f"s{seed}", seed=seed, bpb=bpb, name=name, config=config, **changes)
    return root / name


@pytest.fixture
def folders(tmp_path):
    base = write_group(tmp_path, "base", [1.2506, 1.2500, 1.2493])
    better = write_group(tmp_path, "better", [1.2446, 1.2441, 1.2436])
    return base, better


def compare(*paths, extra=()):
    return main([*map(str, paths), "--replicates", "200", *extra])


def test_a_clear_gain_passes_both_policies(folders, tmp_path, capsys):
    out = tmp_path / "result.json"
    assert compare(*folders, extra=["--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "base (base)" in text and "model.qk_gain: base -> better" in text
    (result,) = json.loads(out.read_text())["candidates"]
    assert result["gain_bpb"] == pytest.approx(0.00586667, abs=1e-6)
    assert result["verdicts"] == {"readme": "pass", "as_applied": "pass"}
    assert result["paired"]["n"] == 3 and result["seeds"] == [0, 42, 1234]
    # tokens and bytes are those of the synthetic documents: about 3 bytes per token
    ratio = result["gain_nats"] / result["gain_bpb"] / np.log(2)
    assert ratio == pytest.approx(3.0, abs=0.01)
    documents = result["documents"]
    assert documents["gain"] == pytest.approx(result["gain_bpb"], rel=1e-9)
    assert documents["low"] < documents["gain"] < documents["high"]


def test_the_worst_seed_decides_about_the_bytes(folders, capsys):
    base, better = folders
    summary = json.loads((better / "s0" / "summary.json").read_text())
    summary["artifact"] |= {"total_bytes": 16_000_001, "margin_bytes": -1, "fits": False}
    (better / "s0" / "summary.json").write_text(json.dumps(summary))
    assert compare(base, better) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "artifact bytes, worst seed" in shown and "16,000,001 (seed 0)" in shown
    assert "NO: seed 0, limit 16,000,000" in shown and "yes, limit 16,000,000" in shown


def test_a_small_gain_passes_as_applied_only(folders, tmp_path, capsys):
    small = write_group(tmp_path, "small", [1.2500, 1.2489, 1.2492])
    compare(folders[0], small)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("verdict")] == [
        ["verdict", "readme", "-", "fail"],
        ["verdict", "as_applied", "-", "pass"],
    ]
    assert any("no number of seeds" in line for line in lines)


def test_one_seed_is_undecided_and_says_so(folders, tmp_path, capsys):
    one = write_group(tmp_path, "one", [1.2])
    compare(folders[0], one)
    text = capsys.readouterr().out
    assert "undecided" in text and "one seed on a side" in text and "none: one seed" in text


def test_policies_use_their_own_bars():
    def result(p):
        return statistics.TestResult("welch", 0.1, 0.0, 3, p=p)

    assert verdicts(result(0.2499), result(0.0099)) == {"readme": "pass", "as_applied": "pass"}
    assert verdicts(result(0.25), result(0.01)) == {"readme": "fail", "as_applied": "fail"}
    assert verdicts(result(None), result(None)) == dict.fromkeys(("readme", "as_applied"), "undecided")


def test_different_data_is_refused_unless_allowed(folders, tmp_path, capsys):
    other = write_group(tmp_path, "other", [1.2, 1.21], data_digest="f" * 64)
    with pytest.raises(UserError, match="did not score the same data"):
        compare(folders[0], other)
    compare(folders[0], other, extra=["--allow-different-data"])
    assert "DIFFERENT DATA" in capsys.readouterr().out


def test_different_data_inside_one_group_is_refused(tmp_path, folders):
    mixed = write_group(tmp_path, "mixed", [1.2, 1.21])
    config = fake_config(9, model={"qk_gain": "mixed"})
    fake_run(mixed / "s9", seed=9, name="mixed", config=config, data_digest="f" * 64)
    with pytest.raises(UserError, match="same data"):
        compare(mixed, folders[1])
    with pytest.raises(UserError, match="same data"):
        compare(folders[0], mixed)


def test_other_code_is_refused_unless_told(folders, tmp_path, capsys):
    other = write_group(tmp_path, "other", [1.2, 1.21], code_hash="9" * 64)
    with pytest.raises(UserError, match="ran different code"):
        compare(folders[0], other)
    compare(folders[0], other, extra=["--allow-different-code"])
    assert "DIFFERENT CODE" in capsys.readouterr().out


def test_repeated_seeds_are_a_warning(folders, tmp_path, capsys):
    other = write_group(tmp_path, "other", [1.2, 1.21])
    config = fake_config(0, model={"qk_gain": "other"})
    fake_run(other / "again", seed=0, bpb=1.23, name="other", config=config)
    compare(folders[0], other)
    text = capsys.readouterr().out
    assert "other: seed 0 ran more than once" in text
    assert "0,42 (2)" in text  # two seeds, not three
    assert "1.21000" in text  # (1.2 + (1.21 + 1.23) / 2) / 2


def test_a_wrong_denominator_is_a_warning(folders, capsys):
    path = folders[1] / "s42" / "summary.json"
    summary = json.loads(path.read_text())
    summary["stages"]["final"]["bytes"] = int(summary["stages"]["final"]["bytes"] * 1.17)
    path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match="did not score the same text"):
        compare(*folders)
    compare(*folders, extra=["--allow-different-data"])
    assert "does not follow from val_loss, tokens and bytes" in capsys.readouterr().out


def test_the_base_is_no_candidate_of_itself(folders, tmp_path, capsys):
    compare(folders[0], tmp_path)
    header = next(line for line in capsys.readouterr().out.splitlines() if "(base)" in line)
    assert header.split() == ["base", "(base)", "better"]
    with pytest.raises(UserError, match="besides those of BASE"):
        compare(folders[0], folders[0])


def test_a_repetition_of_the_base_elsewhere_is_a_candidate(folders, tmp_path, capsys):
    again = write_group(tmp_path / "again", "base", [1.2501, 1.2502, 1.2499])
    compare(folders[0], again)
    text = capsys.readouterr().out
    assert "configuration: no difference" in text


def test_a_base_of_several_recipes_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="must hold one recipe") as error:
        compare(tmp_path, folders[1])
    assert "base: " in str(error.value) and "better: " in str(error.value)


def test_unfinished_runs_are_listed(folders, capsys):
    fake_run(folders[1] / "s5", seed=5, state="failed")
    compare(*folders)
    text = capsys.readouterr().out
    assert "NOT COUNTED" in text and "failed in stage score" in text


def test_other_documents_give_no_document_interval(folders, tmp_path, capsys):
    short = write_group(tmp_path, "short", [1.24, 1.241], num_documents=50)
    compare(folders[0], short, extra=["--allow-different-data"])
    text = capsys.readouterr().out
    assert "did not score the same documents" in text
    assert "bytes per token differ" in text


def test_missing_scores_do_not_stop_the_seed_statistics(folders, capsys):
    (folders[1] / "s0" / "scores.npz").unlink()
    compare(*folders)
    text = capsys.readouterr().out
    assert "no per-document scores" in text and "verdict readme" in text


def test_many_candidates_are_shown_in_blocks(folders, tmp_path, capsys):
    more = [write_group(tmp_path, f"c{i}", [1.24 + i / 1000, 1.241, 1.242]) for i in range(4)]
    compare(folders[0], *more)
    text = capsys.readouterr().out
    assert text.count("base (base)") == 2
    assert "divide the bar by 4" in text
    assert max(map(len, text.splitlines())) < 160


def test_the_bootstrap_weighs_seeds_not_runs(tmp_path, folders):
    repeated = write_group(tmp_path, "repeated", [1.20, 1.22])
    config = fake_config(42, model={"qk_gain": "repeated"})
    fake_run(repeated / "again", seed=42, bpb=1.20, name="repeated", config=config)
    base = make_groups(find_runs([folders[0]]).groups())[0]
    candidate = make_groups(find_runs([repeated]).groups())[0]
    result = compare_groups(base, candidate, replicates=100)
    assert result.documents.gain == pytest.approx(result.gain_bpb, rel=1e-9)


def test_without_scipy_the_extra_is_named(folders, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(UserError, match=r"pip install 'pgolf\[report\]'"):
        compare(*folders)


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "usage: pgolf compare" in capsys.readouterr().out


def test_a_run_that_failed_its_audit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, bpb in ((1, 1.30), (2, 1.31)):
        fake_run(tmp_path / "base" / str(seed), seed=seed, bpb=bpb)
        fake_run(tmp_path / "candidate" / str(seed), seed=seed, bpb=bpb - 0.01)
    path = tmp_path / "candidate" / "2" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"audit": {"verdict": "fail", "checks": []}}))
    main([str(tmp_path / "base"), str(tmp_path / "candidate")])
    out = capsys.readouterr().out
    assert out.count("did not pass its audit") == 1 and str(path.parent) in out


def test_what_was_started_and_left_out_is_named(folders, capsys):
    first = json.loads((folders[1] / "s42" / "config.json").read_text())
    facts = {"group": group_digest(first), "digest": "x", "name": "mini", "overrides": ["seed=7"]}
    register.note(folders[1] / "s7", "running", {**facts, "seed": 7})
    register.note(folders[1] / "s8", "running", {**facts, "seed": 8})
    register.note(folders[1] / "s8", "failed", {**facts, "seed": 8}, "the loss is not a number")
    register.note(folders[1] / "s42", "done", {**facts, "seed": 42})
    register.note(folders[1] / "elsewhere", "done", {**facts, "group": "other", "seed": 9})
    compare(*folders)
    text = capsys.readouterr().out
    assert "seed 7 was started and has no result; its directory is gone" in text
    assert "seed 8 failed (the loss is not a number)" in text
    assert text.count("LEFT OUT") == 2


def test_a_side_that_scored_less_text_is_refused(folders, capsys):
    for seed in (42, 0, 1234):
        path = folders[1] / f"s{seed}" / "summary.json"
        if path.exists():
            summary = json.loads(path.read_text())
            summary["stages"]["final"]["tokens"] -= 5
            path.write_text(json.dumps(summary))
    with pytest.raises(UserError, match="did not score the same text"):
        compare(*folders)
    compare(*folders, extra=["--allow-different-data"])
    assert "DIFFERENT DENOMINATORS" in capsys.readouterr().out


def test_losses_are_matched_at_steps_and_seconds(tmp_path):
    def side(name: str, seconds_a_step: float, loss: float) -> Group:
        directory = fake_run(tmp_path / name / "s1", seed=1, name=name)
        events = [
            {"event": "step", "step": step, "seconds": step * seconds_a_step, "train_loss": loss - 0.01 * step}
            for step in range(1, 101)
        ]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        run = read_run(directory)
        return Group(run.group, name, [run])

    by_step, by_second = matched(side("fast", 1.0, 5.0), side("slow", 2.0, 4.9))
    assert (by_step.kind, by_step.at, by_step.seeds) == ("step", 100, [1])
    assert by_step.gain == pytest.approx(0.1)  # at the same step the slow recipe leads
    assert by_second.at == 100.0  # by then the slow one has made 50 steps of 100, so it is 0.01 * 50 behind its own end
    assert by_second.base == pytest.approx(5.0 - 0.01 * 95.5)
    assert by_second.candidate == pytest.approx(4.9 - 0.01 * 48)
    assert by_second.gain < 0


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.006, "promote"),
        (0.005, "promote"),
        (0.003, "cautious"),
        (0.001, "null"),
        (-0.001, "null"),
        (-0.002, "regression"),
    ],
)
def test_buckets_of_a_screen(gain, expected):
    base, shared = {1: 3.0}, {1: 3.0 - gain, 2: 9.0}
    assert bucket(base, shared, promote=0.005 - 1e-12, cautious=0.002 - 1e-12) == expected

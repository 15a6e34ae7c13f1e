"""`pgolf report`: plots, page and Markdown from synthetic runs."""

import re
import sys

import numpy as np
import pytest

from pgolf.errors import UserError
from pgolf.report import adaptation, overview, schedule, scores
from pgolf.report.comparison import make_groups
from pgolf.report.page import Section, render_page
from pgolf.report.report import main
from pgolf.report.runs import find_runs, read_run
from pgolf.report.tables import html_table, markdown_table, text_table

from .fake_runs import fake_config, fake_run


def test_report_of_two_groups(tmp_path, capsys):
    for seed in (42, 0):
        fake_run(tmp_path / "runs" / f"a{seed}", seed=seed, bpb=1.25 + seed / 1e5)
        other = fake_config(seed, optim={"matrix": {"lr": 0.02}})
        fake_run(tmp_path / "runs" / f"b{seed}", seed=seed, name="slow <&>", config=other)
    fake_run(tmp_path / "runs" / "c", seed=1, state="running")
    out = tmp_path / "out"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert "not counted" in capsys.readouterr().out
    page = (out / "report.html").read_text()
    images = list(out.glob("*.png"))
    assert {image.stem for image in images if "-" not in image.stem} == {
        *("groups", "stages", "lengths", "training_loss", "artifact_bytes", "seconds")
    }
    assert len([image for image in images if "-" in image.stem]) == 2 * 5
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)
    assert page.count("data:image/png;base64,") == len(images)
    assert "slow &lt;&amp;&gt;" in page and "slow <&>" not in page
    assert "optim.matrix.lr" in page and "status.json says running" in page
    assert "<value> of & a file" not in page
    text = (out / "report.md").read_text()
    assert "| optim.matrix.lr | 0.026 | 0.02 |" in text


def test_seconds_are_set_against_both_readings_of_the_limits(tmp_path):
    for seed, seconds in ((1, 580.0), (2, 590.0)):
        fake_run(tmp_path / "runs" / f"s{seed}", seed=seed, train_seconds=seconds)
    table = overview.seconds_table(make_groups(find_runs([tmp_path / "runs"]).groups()))
    assert table is not None
    assert [row[2:] for row in table.rows] == [
        ["603.3", "600", "NO"],  # with calibration and packing
        ["590.0", "600", "yes"],
        ["39.7", "600", "yes"],
    ]


def test_differences_by_length_are_the_seeds_means(tmp_path):
    for seed in (1, 2):
        fake_run(tmp_path / "runs" / f"a{seed}", seed=seed)
        config = fake_config(seed, optim={"matrix": {"lr": 0.02}})
        fake_run(tmp_path / "runs" / f"b{seed}", seed=seed, name="b", config=config, bpb=1.3 + seed / 100)
    groups = make_groups(find_runs([tmp_path / "runs"]).groups())
    (rows,) = scores.differences(groups).values()
    nats = [np.mean([run.documents().nats["final"] for run in group.runs], axis=0) for group in groups]
    num_bytes = groups[0].runs[0].documents().num_bytes
    assert rows[0].longest is None and rows[0].documents == len(num_bytes)
    assert rows[0].change == pytest.approx((nats[1] - nats[0]).sum() / np.log(2) / num_bytes.sum())
    assert sum(row.documents for row in rows[1:]) == len(num_bytes)
    assert rows[0].low < rows[0].change < rows[0].high


def test_the_page_opens_offline(tmp_path):
    fake_run(tmp_path / "run")
    main([str(tmp_path / "run")])
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "<script src" not in page and "<link" not in page and "@import" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert not re.search(r"https?://", page)


def test_every_run_draws_every_run(tmp_path):
    for seed in (1, 2):
        fake_run(tmp_path / "runs" / f"s{seed}", seed=seed)
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "one")])
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "all"), "--every-run"])
    assert len(list((tmp_path / "one").glob("schedule-*.png"))) == 1
    assert len(list((tmp_path / "all").glob("schedule-*.png"))) == 2


def test_plots_are_the_same_bytes_each_time(tmp_path):
    run = read_run(fake_run(tmp_path / "run"))
    one = schedule.schedule(run, tmp_path / "one.png").read_bytes()
    assert one == schedule.schedule(run, tmp_path / "two.png").read_bytes()


def test_a_run_without_events_or_scores_still_reports(tmp_path):
    directory = fake_run(tmp_path / "run")
    (directory / "metrics.jsonl").unlink()
    (directory / "scores.npz").unlink()
    main([str(directory), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "metrics.jsonl is missing" in page and "No plot of the documents" in page


def test_only_unfinished_runs_are_refused(tmp_path):
    fake_run(tmp_path / "run", state="failed")
    with pytest.raises(UserError, match="no finished run"):
        main([str(tmp_path)])


def test_a_second_report_does_not_take_its_folder_for_a_run(tmp_path):
    fake_run(tmp_path / "run")
    assert main([str(tmp_path)]) == main([str(tmp_path)]) == 0


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    fake_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'pgolf\[report\]'"):
        main([str(tmp_path)])


def test_the_switch_is_found_in_the_step_events():
    events = [
        {"event": "step", "step": 1, "plan": "plain"},
        {"event": "stage", "stage": "x"},
        {"event": "step", "step": 2, "plan": "plain"},
        {"event": "step", "step": 3, "plan": "looped"},
    ]
    assert schedule.plan_switches(events) == [(events[3], "plain -> looped")]
    assert schedule.plan_switches([]) == []


def test_the_planned_schedule_is_the_one_of_the_optimizer():
    optimizers = pytest.importorskip("pgolf.optim.schedule")
    config = fake_config(1)
    fractions = np.linspace(0, 1, 101)
    planned = schedule.planned_scale(config, fractions)
    warmdown = optimizers.Warmdown(fraction=0.75, floor=0.1)
    assert planned.tolist() == pytest.approx([warmdown(float(one)) for one in fractions])
    assert schedule.planned_budget(config, "max_steps") == 200
    assert schedule.planned_budget(config, "max_seconds") is None
    config["train"]["schedule"] = {"_target_": "elsewhere.Cosine"}
    assert schedule.planned_scale(config, fractions) is None


def test_bins_hold_every_document_once():
    size = np.array([5, 1, 3, 2, 4, 6])
    centres, means = adaptation.binned(size, size * 10.0, weights=size, bins=3)
    assert centres.tolist() == [1.5, 3.5, 5.5]
    assert means == pytest.approx([50 / 3, 250 / 7, 610 / 11])
    assert adaptation.binned(size, size * 1.0, None, bins=99)[1].tolist() == [1, 2, 3, 4, 5, 6]


def test_tables():
    headers, rows = ["name", "n"], [["a|b", "1"], ["<c>", "22"]]
    assert text_table(headers, rows).splitlines() == [
        "name   n",
        "----  --",
        "a|b    1",
        "<c>   22",
    ]
    assert markdown_table(headers, rows).splitlines()[2] == "| a\\|b | 1 |"
    page = html_table(headers, rows)
    assert "&lt;c&gt;" in page and '<td class="number">22</td>' in page


def test_text_on_the_page_is_escaped():
    page = render_page("<t>", "a & b", [Section("<s>", warnings=["<w>"])])
    assert "<t>" not in page and "<s>" not in page and "<w>" not in page
    assert "a &amp; b" in page


def test_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "usage: pgolf report" in capsys.readouterr().out

"""The wandb report is built from run directories without a network; only sending it needs one."""

import importlib.util
from pathlib import Path

import pytest

from pgolf.app.tracking import group_name
from pgolf.report.comparison import compare_groups, make_groups
from pgolf.report.runs import find_runs
from tests.report.fake_runs import fake_config, fake_run


@pytest.fixture
def script():
    path = Path(__file__).parents[2] / "scripts" / "wandb_report.py"
    spec = importlib.util.spec_from_file_location("wandb_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    for name, bpb in (("base", 1.25), ("other", 1.2)):
        for seed in (1, 2):
            config = fake_config(seed, name=name, model={"qk_gain": name})
            fake_run(tmp_path / f"{name}-seed{seed}", seed=seed, bpb=bpb + seed / 1000, name=name, config=config)
    return tmp_path


def test_a_dry_run_prints_results_verdict_and_difference(script, folder, capsys):
    assert script.main([str(folder), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "| base" in text and "verdict readme" in text and "model.qk_gain" in text


def test_the_report_selects_the_runs_of_each_recipe(script, folder):
    pytest.importorskip("wandb_workspaces")
    groups = make_groups(find_runs([folder]).groups())
    report = script.build(groups, [compare_groups(groups[0], groups[1])], "pgolf", "someone", "A title")
    grid = report.blocks[-1]
    names = [group_name(group.runs[0].config, group.digest) for group in groups]
    assert [one.filters for one in grid.runsets] == [f"Group == '{name}'" for name in names]
    assert len(set(names)) == 2
    assert [panel.y for panel in grid.panels[:1]] == [["step/train_loss"]]
    assert grid.panels[3].metrics == ["val_bpb"]
    assert "Results" in {getattr(block, "text", None) for block in report.blocks}


def test_publishing_without_a_login_is_refused(script, folder, capsys, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(type(wandb.api), "api_key", None)
    assert script.main([str(folder)]) == 2
    assert "wandb login" in capsys.readouterr().err


def test_no_finished_run_is_said(script, tmp_path, capsys):
    assert script.main([str(tmp_path), "--dry-run"]) == 2
    assert "no run directory" in capsys.readouterr().err

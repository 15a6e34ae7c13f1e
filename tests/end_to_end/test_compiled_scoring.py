"""`compile_scoring` from the command line to the summary; the compiler itself is tried in tests/ttt/test_forward.py."""

import shutil
from pathlib import Path

from pgolf.files import read_json

from .conftest import succeed


def test_a_finished_run_is_scored_by_the_compiled_forward(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """It is an evaluation of its own, which counts its graphs; switched off by torch, the compiler makes none and the
    scores are the same bits."""
    run = tmp_path / finished.name
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("eval-*"))
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    shown = succeed("eval", f"run={run}", "compile_scoring=true")
    assert "final: 0 graph(s) were compiled within these seconds" in shown
    again = read_json(next(run.glob("eval-*")) / "summary.json")
    assert again["val_bpb"] == read_json(run / "summary.json")["val_bpb"]
    stored = read_json(next(run.glob("eval-*")) / "run.json")["stages"]["final"]["result"]
    assert stored["graphs"] == 0

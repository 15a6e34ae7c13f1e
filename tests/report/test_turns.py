"""The report shows when events came, which never did, what gains learned and how alike passes are."""

import json
from pathlib import Path
from typing import Any

from pgolf.report.learned import learned, means
from pgolf.report.lipschitz import _by_block, _by_kind, lipschitz
from pgolf.report.report import main
from pgolf.report.runs import Run, read_run
from pgolf.report.turns import dead_parameters, loss_with_turns, passes, turns, turns_table

from .fake_runs import fake_run


def turn(what: str, step: int, setting: str = "plan", **more: Any) -> dict[str, Any]:
    where = {"step": step, "fraction": step / 200, "seconds": step * 0.5}
    return {"event": "turn", "setting": setting, "what": what, "planned": "35.0% of the budget", **where, **more}


def gains(step: int) -> dict[str, Any]:
    values = {f"blocks.{layer}.attn.q_gain": [[5.0 + layer + step / 100, 4.0, 9.0]] for layer in range(3)}
    values |= {"blocks.0.resid_mix": [[1.0, 1.0, 1.0], [0.1, 0.0, 0.2]], "recurrence.alpha": [[0.5, 0.5, 0.5]]}
    return {"event": "learned", "step": step, "fraction": step / 200, "seconds": float(step), "values": values}


def with_events(directory: Path, *events: dict[str, Any]) -> Run:
    fake_run(directory)
    with open(directory / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return read_run(directory)


def test_events_are_listed_as_they_came_last_and_those_that_never_came(tmp_path):
    never = ["momentum: the momentum ramp ends at step 1500, but training ended at step 200"]
    run = with_events(
        tmp_path / "run",
        turn("the plan looped starts", 60),
        turn("the average takes in its first weights", 90, "averaging", planned=None),
        turn("the plan looped starts", 70),
        {"event": "schedules", "planned": {}, "never_happened": never},
    )
    assert [(event["what"], event["step"]) for event in turns(run)] == [
        ("the average takes in its first weights", 90),
        ("the plan looped starts", 70),
    ]
    table = turns_table(run)
    assert table is not None
    assert table.rows == [
        ["averaging", "the average takes in its first weights", "when it is due", "90", "45.0%", "45.0"],
        ["plan", "the plan looped starts", "35.0% of the budget", "70", "35.0%", "35.0"],
        ["momentum", "the momentum ramp ends at step 1500, but training ended at step 200", "", "never", "", ""],
    ]
    assert loss_with_turns(run, tmp_path / "events.png") is not None


def lipschitz_terms(step: int) -> dict[str, Any]:
    """As the diagnostic records them, with a term that has no formula."""
    matrices = {"tok_emb.weight": 3.0, "blocks.0.attn.c_q.weight": 1.0 + step, "blocks.1.attn.c_q.weight": 2.0}
    tables = {"singular_values": matrices, "query_gains": {"0": 5.0, "1": 4.0}, "product": {"0": 80.0, "1": None}}
    return {"event": "lipschitz", "step": step, "temperature": 1.0, **tables}


def test_singular_values_are_drawn_by_kind_and_terms_without_a_formula_left_out() -> None:
    events = [lipschitz_terms(step) for step in (1, 50)]
    assert _by_kind(events) == {"tok_emb": {1: 3.0, 50: 3.0}, "attn.c_q": {1: 2.0, 50: 51.0}}
    assert _by_block(events, "product") == {"block 0": {1: 80.0, 50: 80.0}}
    assert _by_block(events, "query_gains") == {"block 0": {1: 5.0, 50: 5.0}, "block 1": {1: 4.0, 50: 4.0}}


def test_means_are_named_by_layer_and_row():
    assert means(gains(0)["values"]) == {
        "attn.q_gain": {"layer 0": 5.0, "layer 1": 6.0, "layer 2": 7.0},
        "resid_mix": {"layer 0, row 0": 1.0, "layer 0, row 1": 0.1},
        "recurrence.alpha": {"all": 0.5},
    }


def test_the_page_has_what_was_recorded(tmp_path, capsys):
    cosines = [{"event": "passes", "step": step, "cosine": {"1": [0.9, -0.2], "2": [0.5, 0.1]}} for step in (50, 100)]
    terms = [lipschitz_terms(step) for step in (1, 50)]
    events = [turn("the plan looped starts", 70), *(gains(step) for step in (0, 50, 100)), *cosines, *terms]
    run = with_events(tmp_path / "run", *events)
    summary = run.summary | {"train": {"dead_parameters": [{"parameter": "x.y", "why": "gradient", "step": 10}]}}
    (run.directory / "summary.json").write_text(json.dumps(summary))
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    names = {Path(line).name for line in capsys.readouterr().out.split()}
    assert {"events-1-seed42.png", "learned-1-seed42.png", "passes-1-seed42.png", "lipschitz-1-seed42.png"} <= names
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h3>Events</h3>" in page and "The parameter x.y did not learn (gradient, found at step 10)." in page


def test_a_run_that_recorded_nothing_has_no_such_picture(tmp_path):
    run = read_run(fake_run(tmp_path / "run"))
    assert turns_table(run) is None and dead_parameters(run) == []
    drawn = [draw(run, tmp_path / "none.png") for draw in (loss_with_turns, learned, passes, lipschitz)]
    assert drawn == [None] * 4 and not (tmp_path / "none.png").exists()

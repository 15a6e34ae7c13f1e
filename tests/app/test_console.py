"""What people see: lines in a pipe, bars on a terminal, all of it in the log, and the result."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from pgolf.app import console, table
from pgolf.app.console import PLAIN_WIDTH, Screen


class Terminal(io.StringIO):
    """A stream that says a person watches."""

    def isatty(self) -> bool:
        """Yes."""
        return True


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def monotonic(self) -> float:
        """The time in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Progress is measured with a clock that stands still."""
    made = Clock()
    monkeypatch.setattr(console.time, "monotonic", made.monotonic)
    return made


def test_a_pipe_gets_a_few_plain_lines_and_the_log_gets_them_too(tmp_path: Path, clock: Clock) -> None:
    stream, log = io.StringIO(), tmp_path / "train.log"
    screen = Screen(log, stream)
    screen.say("hello [bold]brackets[/bold] :smile:")
    with screen.task("train", 1000) as task:
        for step in range(1, 1001):
            clock.now += 0.1
            task.update(step, loss=3.25, tokens_per_second=123456.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "hello [bold]brackets[/bold] :smile:"
    assert lines[-1] == "train  1000/1000  100 %  loss 3.2500  tokens_per_second 123,456  (100.0 s)"
    assert 10 <= len(lines) <= 32
    assert "\x1b" not in stream.getvalue()
    logged = log.read_text().splitlines()
    assert [line[20:] for line in logged] == lines


def test_lines_become_rarer_in_long_work(clock: Clock) -> None:
    stream = io.StringIO()
    with Screen(None, stream).task("score", None) as task:
        for step in range(36_000):
            clock.now += 0.1
            task.update(step)
    assert len(stream.getvalue().splitlines()) < 120


def test_a_terminal_gets_bars_and_one_closing_line_each(tmp_path: Path) -> None:
    stream, log = Terminal(), tmp_path / "train.log"
    screen = Screen(log, stream)
    with screen.task("outer", 2) as outer, screen.task("inner", None) as inner:
        inner.update(5, loss=1.0)
        outer.update(2)
    shown = stream.getvalue()
    assert "outer" in shown and "inner" in shown and "\x1b" in shown
    closing = log.read_text().splitlines()
    assert len(closing) == 2 and "inner  5" in closing[0] and "outer  2/2  100 %" in closing[1]
    with screen.task("later", 1) as later:
        later.update(1)


def test_an_error_inside_a_task_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    screen = Screen(tmp_path / "train.log", Terminal())
    with pytest.raises(RuntimeError), screen.task("train", 10) as task:
        task.update(3)
        raise RuntimeError("broken")
    assert screen._progress is None and screen._running == 0


def summary(**changes: Any) -> dict[str, Any]:
    """A summary with every part."""
    stage = {"val_bpb": 1.5, "val_loss": 2.5, "tokens": 100, "bytes": 300, "seconds": 1.0}
    return {
        "val_bpb": 1.25,
        "stages": {
            "pre_quant": stage,
            "post_quant": stage | {"val_bpb": 1.75},
            "final": stage | {"val_bpb": 1.25},
        },
        "artifact": {
            "weight_bytes": 15_000_000,
            "code_bytes": 200_000,
            "total_bytes": 15_200_000,
            "limit_bytes": 16_000_000,
            "fits": True,
        },
        "train": {"steps": 300, "tokens": 4096, "seconds": 2.0},
        "baselines": {"unigram": 4.5, "brotli": 2.125, "xz": None},
        "samples": [{"prompt": "Return [a] ", "text": "list\n\x1b[31m of words"}],
        "seconds": {"train": 2.0, "final": 3661.0},
        "audit": {
            "verdict": "fail",
            "checks": [
                {
                    "id": "C1",
                    "name": "causality",
                    "verdict": "fail",
                    "probed": 3,
                    "largest": 0.125,
                    "detail": "moved [1]",
                }
            ],
        },
        "limits": {
            "train_strict": {"seconds": 600.5, "limit": 600.0, "within": False},
            "train_as_practised": {"seconds": 599.5, "limit": 600.0, "within": True},
        },
        "run_directory": "/somewhere/run",
    } | changes


def shown(value: dict[str, Any], stream: io.StringIO, log: Path | None = None) -> str:
    """The tables of a summary as text."""
    table.show(value, Screen(log, stream))
    return stream.getvalue()


def test_the_table_has_every_figure_and_is_ascii_in_a_pipe(tmp_path: Path) -> None:
    text = shown(summary(), io.StringIO(), tmp_path / "train.log")
    for figure in (
        "1.50000",
        "1.75000",
        "+0.25000",
        "1.25000",
        "-0.50000",
        "4.50000",
        "2.12500",
        "15,000,000",
        "15,200,000",
        "fits",
        "800,000",
        "3,661.0",
        "300 steps",
        "Validity: fail",
        "0.125",
        "moved [1]",
        "Return [a] list",
        "/somewhere/run",
    ):
        assert figure in text, figure
    strict, practised = (line for line in text.splitlines() if "| train strict" in line or "| train as" in line)
    assert "OVER" in strict and "600.5" in strict and "within" in practised
    assert text.isascii() and "\x1b" not in text
    assert table.line(summary()).startswith("val_bpb 1.25000, 15,200,000 bytes (fits)")
    assert not (tmp_path / "train.log").exists()


def test_too_big_an_artifact_is_loud_and_a_run_without_training_has_a_table_too() -> None:
    artifact = summary()["artifact"] | {"total_bytes": 16_000_001, "fits": False}
    text = shown(summary(artifact=artifact, train=None, baselines={}, samples=[]), io.StringIO())
    assert "DOES NOT FIT" in text and "-1" in text
    assert "DOES NOT FIT" in table.line(summary(artifact=artifact))


def test_a_part_of_the_text_is_never_shown_as_the_score() -> None:
    coverage = {"policy": "max_seconds", "documents": 2, "num_documents": 12, "left_out": 6022}
    stages = summary()["stages"]
    part = summary(val_bpb=None, val_loss=None, stages={**stages, "final": {**stages["final"], "coverage": coverage}})
    assert "PART OF THE TEXT (max_seconds)" in shown(part, io.StringIO())
    assert table.line(part).startswith("NO SCORE of the validation text (max_seconds: 2 of 12 documents scored)")


def test_on_a_terminal_it_has_colours() -> None:
    assert "\x1b[" in shown(summary(), Terminal())


def test_a_wide_table_of_numbers_is_not_cut_short_in_a_pipe() -> None:
    stream = io.StringIO()
    wide, prose = Table(), Table()
    for index in range(12):
        wide.add_column(f"column {index}", no_wrap=True)
    wide.add_row(*["123,456,789"] * 12)
    prose.add_column("text")
    prose.add_row("word " * 60)
    Screen(stream=stream).tables([wide, prose])
    assert stream.getvalue().count("123,456,789") == 12 and "…" not in stream.getvalue()
    assert max(len(line) for line in stream.getvalue().splitlines() if "word" in line) <= PLAIN_WIDTH

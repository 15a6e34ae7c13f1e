"""`pgolf inspect`: plans with lanes and skips, what a token costs, and the picture."""

from functools import partial
from pathlib import Path

import pytest

from pgolf.app.verbs import inspect
from pgolf.errors import ConfigError
from pgolf.model.block import WithoutAttention
from pgolf.model.lanes import SeparateLanes, TwoLane
from pgolf.model.repeats import OwnMlp
from pgolf.model.vectors import VirtualVectors
from tests.support import tiny_model

CONF = Path(__file__).parents[2] / "conf"


def run(*words: str) -> int:
    return inspect.main([*words, "--config-path", str(CONF)])


def test_visits_say_where_each_skip_comes_from_and_what_lanes_take() -> None:
    model = tiny_model(lanes=partial(TwoLane, start_layer=3, final_lane="mean"))
    looped = inspect.visits(model, model.plans["looped"])
    assert [(v.block, v.visit) for v in looped] == [(0, 1), (1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]
    assert [v.skip_from for v in looped] == [None, None, None, 2, 1, 0]
    assert [v.form for v in looped] == ["sequential"] * 5 + ["lanes"]
    assert looped[-1].skip_lanes == (0,) and looped[-1].writes == ((0, 1), (0, 1))
    assert looped[0].writes == ((), ())


def test_rows_of_the_plan_name_streams_and_lanes() -> None:
    model = tiny_model(lanes=partial(SeparateLanes, start_layer=3))
    rows = [inspect._visit_row(visit) for visit in inspect.visits(model, model.plans["plain"])]
    assert rows[2] == ["2", "2", "1", "sequential", "stream", "stream", "slot 1"]
    assert rows[3] == ["3", "3", "1", "lanes", "lane 0 -> 0", "lane 1 -> 1", "slot 0 -> none"]


def test_rows_of_the_plan_name_what_belongs_to_visits() -> None:
    model = tiny_model(
        vectors=VirtualVectors, repeat_mlp=OwnMlp, without_attention=WithoutAttention(layers=[0]), num_loops=1
    )
    rows = [inspect._visit_row(visit) for visit in inspect.visits(model, model.plans["looped"])]
    assert rows[0][1:6] == ["0", "1", "sequential", "none", "stream"]
    assert rows[1][1:6] == ["1", "1", "sequential", "stream", "stream"]
    assert rows[3][1:6] == ["1 (vectors of 3)", "2", "sequential", "stream", "stream (its own)"]
    assert rows[5][1:3] == ["3 (vectors of 5)", "1"]


@pytest.mark.parametrize(
    ("words", "plot", "expected"),
    [
        (["a=1"], None, (["a=1"], None)),
        (["a=1"], "", (["a=1"], "")),
        (["a=1"], "b=2", (["b=2", "a=1"], "")),
        ([], "x/y.png", ([], "x/y.png")),
    ],
)
def test_plot_takes_a_name_or_nothing(words: list[str], plot: str | None, expected: tuple[list[str], str]) -> None:
    assert inspect._separate(words, plot) == expected


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--plot x.svg: expected the name of a .png file"):
        inspect._separate([], "x.svg")


def test_everything_is_shown_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--plot", "model/lanes=two_lane", "model.lanes.start_layer=3") == 0
    shown = capsys.readouterr().out
    for word in ("lane 0 -> 0 and 1", "Floating point operations per token", "trained in", "float32", "Schedules over"):
        assert word in shown, word
    assert "drawn in architecture-default.png" in shown
    assert (tmp_path / "architecture-default.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["architecture-default.png"]

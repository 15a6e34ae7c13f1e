"""The picture of a configuration: what is drawn, and that it can be drawn for every form of visit."""

import sys

import pytest
from matplotlib.figure import Figure

from pgolf.errors import UserError
from pgolf.report import architecture as module
from pgolf.report.architecture import Sketch, Visit, architecture

BOTH = ((0, 1), (0, 1))


def sketch(plans, sizes=None, title="a model"):
    moments = [0.0, 0.5, 1.0]
    return Sketch(
        title=title,
        plans=plans,
        costs=dict.fromkeys(plans, "1.0 million operations a token forward"),
        moments=moments,
        curves={"learning rate (multiplier)": [1.0, 0.5, 0.1], "momentum": [0.9, 0.95, 0.95]},
        begins={name: 0.3 * index for index, name in enumerate(plans)},
        sizes=sizes or {"matrix (gptq int6)": 9_000_000, "container (zlib)": 2000},
        limit=16_000_000,
    )


PLAIN = [Visit(0, 0, 1, "sequential", None), Visit(1, 1, 1, "sequential", 0)]
LOOPED = [
    Visit(0, 0, 1, "sequential", None),
    Visit(1, 1, 1, "parallel", None),
    Visit(2, 1, 2, "parallel", 1),
    Visit(3, 2, 1, "lanes", 0, (0,), BOTH),
]


@pytest.fixture
def words(monkeypatch):
    """Every text of the figure, as it is when it is saved."""
    found = []

    def keep(self, *arguments, **names):
        found.extend(text.get_text() for text in self.findobj(match=lambda artist: hasattr(artist, "get_text")))
        return original(self, *arguments, **names)

    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", keep)
    return found


def test_the_picture_names_plans_visits_and_sizes(tmp_path, words):
    path = architecture(sketch({"plain": PLAIN, "looped": LOOPED}), tmp_path / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    for expected in (
        "a model",
        "Plan plain: 2 visits of 2 blocks, 1.0 million operations a token forward",
        "Plan looped: 4 visits of 3 blocks, 1.0 million operations a token forward",
        "visit 2",
        "9,002,000",
        "Bytes of the weights: 56.3% of the limit",
        "learning rate (multiplier)",
    ):
        assert expected in words, expected
    key = next(word for word in words if word.startswith("A: attention"))
    for sign in ("coloured", "A above M", "two lanes", "arc"):
        assert sign in key
    assert words.count("visit 1") == 1  # of the repeated block alone


def test_the_key_explains_only_what_is_there(tmp_path, words):
    architecture(sketch({"plain": [Visit(0, 0, 1, "sequential", None)]}), tmp_path / "a.png")
    key = next(word for word in words if word.startswith("A: attention"))
    assert not any(sign in key for sign in ("coloured", "A above M", "two lanes", "arc"))


@pytest.mark.parametrize(
    ("lanes", "said"),
    [((0,), None), ((0, 1), "an arc into lanes goes into both"), ((), "dashed arc: the lanes do not take it")],
)
def test_the_key_says_which_lanes_take_a_skip(tmp_path, words, lanes, said):
    visits = [Visit(0, 0, 1, "sequential", None), Visit(1, 1, 1, "lanes", 0, lanes, BOTH)]
    architecture(sketch({"plain": visits}), tmp_path / "a.png")
    key = " ".join(next(word for word in words if word.startswith("A: attention")).split())
    shown = [
        each for each in ("an arc into lanes goes into both", "dashed arc: the lanes do not take it") if each in key
    ]
    assert shown == ([said] if said else [])


def test_plans_that_are_the_same_are_drawn_once(tmp_path, words):
    architecture(sketch({"plain": PLAIN, "looped": PLAIN}), tmp_path / "a.png")
    assert any(word.startswith("Plan plain = looped: 2 visits") for word in words)
    assert not any(word.startswith("Plan looped") for word in words)


def test_the_same_sketch_gives_the_same_bytes(tmp_path):
    first, second = (architecture(sketch({"looped": LOOPED}), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("writes", [BOTH, ((0,), (1,))])
def test_lanes_that_meet_only_at_the_end_have_no_lines_between(monkeypatch, tmp_path, writes):
    lines = []
    monkeypatch.setattr(module, "_path", lambda axes, points, **style: lines.append(points))
    architecture(sketch({"plain": [Visit(0, 0, 1, "lanes", None, (), writes)]}), tmp_path / "a.png")
    crossing = [points for points in lines if len(points) == 2 and points[0][1] == -points[1][1] != 0]
    assert len(crossing) == (2 if writes == BOTH else 0)


def test_without_matplotlib_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'pgolf\[report\]'"):
        architecture(sketch({"plain": PLAIN}), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []

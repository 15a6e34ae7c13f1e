"""Graphs that are compiled while training runs are counted, logged and said."""

import torch

from pgolf.train.recompiles import Recompiles, graphs
from pgolf.train.state import Progress


class Said:
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def test_a_new_shape_in_the_middle_is_counted_and_an_old_one_is_not():
    torch._dynamo.reset()
    double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    double(torch.ones(3))  # rehearsed before
    progress, console, events = Progress(step=5), Said(), []
    recompiles = Recompiles(progress, console, events.append)
    double(torch.ones(3))
    recompiles.look()
    assert progress.recompiles == 0 and not events and not console.said
    double(torch.ones(4))
    recompiles.look()
    recompiles.look()
    assert progress.recompiles == 1
    assert events == [{"event": "recompiled", "step": 5, "graphs": 1, "recompiles": 1}]
    assert "step 5 waited for the compiler" in console.said[0]


def test_without_a_compiler_there_is_nothing_to_count(monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "torch._dynamo.utils", raising=False)
    assert graphs() == 0


def test_what_is_compiled_off_the_clock_is_not_counted():
    """A validation between two steps, say, whose shapes are others."""
    torch._dynamo.reset()
    double = torch.compile(lambda x: 2 * x, backend="eager", dynamic=False)
    progress, console, events = Progress(step=5), Said(), []
    recompiles = Recompiles(progress, console, events.append)
    double(torch.ones(3))
    compiled = graphs()
    assert recompiles.uncounted(double)(torch.ones(4)).tolist() == [2.0] * 4 and graphs() == compiled + 1
    recompiles.look()
    assert progress.recompiles == 1 and [event["graphs"] for event in events] == [1]

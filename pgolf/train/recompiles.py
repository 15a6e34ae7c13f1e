"""Graphs that the compiler makes while training runs, where their seconds count against the budget."""

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from pgolf.console import Console
from pgolf.train.state import Progress

Result = TypeVar("Result")


def graphs() -> int:
    """How many graphs torch.compile has made in this process; 0 where nothing was compiled."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0


class Recompiles:
    """Counts what is compiled from its making on: every shape should have been compiled before, off the clock."""

    def __init__(self, progress: Progress, console: Console, log: Callable[[dict[str, Any]], None]) -> None:
        self.progress, self.console, self.log = progress, console, log
        self.seen = graphs()

    def uncounted(self, work: Callable[..., Result]) -> Callable[..., Result]:
        """`work` off the clock: what is compiled for it is not counted."""

        @functools.wraps(work)
        def done(*arguments: Any) -> Result:
            before = graphs()
            try:
                return work(*arguments)
            finally:
                self.seen += graphs() - before

        return done

    def look(self) -> None:
        """Count, say and log what was compiled since the last look, a step ago."""
        new, self.seen = graphs() - self.seen, graphs()
        if new <= 0:
            return
        self.progress.recompiles += new
        step = self.progress.step
        self.log({"event": "recompiled", "step": step, "graphs": new, "recompiles": self.progress.recompiles})
        self.console.say(f"step {step} waited for the compiler: {new} graph(s) were made that no rehearsal had met")

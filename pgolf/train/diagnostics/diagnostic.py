"""What is measured of a model in training where a configuration asks for it."""

from collections.abc import Callable
from typing import Any, Protocol

from pgolf.model.gpt import GPT


class Diagnostic(Protocol):
    """Looks at the model between two steps, off the clock and on the first process alone, and changes nothing.

    event: the name of its records in metrics.jsonl.
    """

    event: str

    def due(self, model: GPT, step: int) -> bool:
        """Whether there is something to measure after `step` steps."""
        ...

    def record(self, model: GPT, forward: Callable[[], Any]) -> dict[str, Any]:
        """What was measured, by name, for JSON; `forward` runs the model on some text."""
        ...

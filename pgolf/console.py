"""What long work says to people. The command line draws it; tests and libraries stay silent."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Task(Protocol):
    """One piece of long work with a known or unknown length."""

    def update(self, done: int, **figures: float | str) -> None:
        """Say that `done` units are finished; `figures` are shown beside the bar (loss=3.21, ...)."""


class Console(Protocol):
    """Where messages and progress go."""

    def say(self, message: str) -> None:
        """One line for people."""

    def task(self, title: str, total: int | None) -> contextlib.AbstractContextManager[Task]:
        """Show progress of a piece of work with `total` units while the block runs."""


class Silent:
    """A console that shows nothing."""

    def say(self, message: str) -> None:
        """Drop the message."""

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator[Task]:
        """Give a task whose updates go nowhere."""
        yield _SilentTask()


class _SilentTask:
    def update(self, done: int, **figures: float | str) -> None:
        """Drop the update."""

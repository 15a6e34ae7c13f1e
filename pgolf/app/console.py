"""What a run says: bars on a terminal, rate-limited lines elsewhere, everything in train.log."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

import rich.console
from rich import box
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 110  # columns when the output is a pipe or a file
SECONDS_BETWEEN_LINES = 5.0  # at the beginning; later a twentieth of the time that has passed
LEAST_SECONDS = 1.0
PARTS = 10  # a line at each tenth as well


class Out(rich.console.Console):
    """rich's console, except that a reader who goes away (`| head`) does not end the run."""

    def on_broken_pipe(self) -> None:
        """Go on in silence; the log still gets everything."""
        close_output()
        self.quiet = True


def close_output() -> None:
    """Send what this process prints from now on nowhere, so that nothing fails on a broken pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Screen:
    """A `pgolf.console.Console` for one process that may talk: its output and perhaps a log file.

    The log is appended to, so a resumed run keeps the story of its first part.
    """

    def __init__(self, log: Path | None = None, stream: TextIO | None = None):
        stream = stream or sys.stdout
        width = None if stream.isatty() else PLAIN_WIDTH
        self.out = Out(file=stream, highlight=False, width=width)
        self._log_path = log
        self._progress: Progress | None = None
        self._running = 0
        self._lock = threading.Lock()

    @property
    def terminal(self) -> bool:
        """Whether a person watches."""
        return self.out.is_terminal

    def say(self, message: str) -> None:
        """One line on the screen and in the log."""
        self.show(message)
        self.log(message)

    def show(self, message: str) -> None:
        """One line on the screen alone."""
        self.out.print(message, markup=False, emoji=False, soft_wrap=True)

    def tables(self, parts: Iterable[Table | Text]) -> None:
        """Tables on the screen: with lines on a terminal; elsewhere in plain ASCII, and those of numbers as wide as
        they are, so that nothing is cut short."""
        for part in parts:
            if isinstance(part, Table):
                part.box = box.ROUNDED if self.terminal else box.ASCII2
                if part.title:
                    # A table wraps its own title at its width.
                    title = part.title if isinstance(part.title, Text) else Text(str(part.title))
                    self.out.print()
                    self.out.print(title, style="bold")
                    part.title = None
            usual = self.out.width
            if isinstance(part, Table) and not self.terminal and all(column.no_wrap for column in part.columns):
                unlimited = self.out.options.update(max_width=10_000)
                self.out.width = max(usual, Measurement.get(self.out, unlimited, part).maximum)
            self.out.print(part)
            if self.out.width != usual:
                self.out.width = usual

    def log(self, message: str) -> None:
        """One line in the log alone; an output without a log drops it."""
        if self._log_path is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            lines = "".join(f"{stamp} {line}\n" for line in message.splitlines() or [""])
            try:
                with self._lock, open(self._log_path, "a", encoding="utf-8") as file:
                    file.write(lines)
            except OSError as error:
                self._log_path, path = None, self._log_path
                self.show(f"{path} cannot be written ({error.strerror}): the rest is shown here alone.")

    @contextlib.contextmanager
    def task(self, title: str, total: int | None) -> Iterator["Progression"]:
        """Show progress while the block runs; one closing line when it ends."""
        progression = Progression(title, total, self._line)
        started = time.monotonic()
        with self._bar(title, total) as bar:
            progression.bar = bar
            yield progression
        self.say(f"{progression.line()}  ({time.monotonic() - started:.1f} s)")

    def _line(self, message: str) -> None:
        if self.terminal:
            self.log(message)
        else:
            self.say(message)

    @contextlib.contextmanager
    def _bar(self, title: str, total: int | None) -> Iterator[Callable[[int, str], None] | None]:
        if not self.terminal:
            yield None
            return
        if self._progress is None:
            self._progress = _progress(self.out)
        progress = self._progress
        if self._running == 0:
            progress.start()
        self._running += 1
        identifier = progress.add_task(title, total=total, figures="")
        try:
            yield lambda done, figures: progress.update(identifier, completed=done, figures=figures)
        finally:
            progress.remove_task(identifier)
            self._running -= 1
            if self._running == 0:
                progress.stop()
                self._progress = None


class Progression:
    """The task of a Screen: draws the bar, writes a line every few seconds or tenth of the way."""

    def __init__(self, title: str, total: int | None, write: Callable[[str], None]):
        self.title, self.total, self.write = title, total, write
        self.bar: Callable[[int, str], None] | None = None
        self.done, self.figures = 0, ""
        self._started = self._last = time.monotonic()
        self._part = 0

    def update(self, done: int, **figures: float | str) -> None:
        """Say that `done` units are finished."""
        self.done = done
        self.figures = "  ".join(f"{name} {_number(value)}" for name, value in figures.items())
        if self.bar is not None:
            self.bar(done, self.figures)
        if done == self.total:
            return  # the closing line follows
        now, part = time.monotonic(), self._part_of(done)
        patience = max(SECONDS_BETWEEN_LINES, (now - self._started) / 20)
        since = now - self._last
        if since >= patience or (part > self._part and since >= LEAST_SECONDS):
            self._last, self._part = now, part
            self.write(self.line())

    def line(self) -> str:
        """`train  12/200  6 %  loss 3.21`."""
        of = f"/{self.total}  {100 * self.done // self.total} %" if self.total else ""
        return f"{self.title}  {self.done}{of}  {self.figures}".rstrip()

    def _part_of(self, done: int) -> int:
        return PARTS * done // self.total if self.total else 0


class _Remaining(TimeRemainingColumn):
    """Time to go, empty for work of unknown length."""

    def render(self, task: Bar) -> Text:
        """The column of one bar."""
        return super().render(task) if task.total else Text("")


def _progress(out: rich.console.Console) -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        _Remaining(compact=True),
        TextColumn("[dim]{task.fields[figures]}"),
    )
    return Progress(*columns, console=out, transient=True)


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"

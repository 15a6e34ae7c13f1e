"""Scoring windows under weights that stay, batch by batch, shared out among the processes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgolf.console import Task
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.budget import Budget
from pgolf.ttt.strategy import Bench, window_log_probs


def score_windows(
    model: GPT,
    scorer: Scorer,
    windows: Sequence[Window],
    rows: int,
    bench: Bench,
    opened: bool = False,
    max_seconds: float | None = None,
) -> None:
    """`walk` over all windows of a strategy whose weights stay, with progress over this process's part."""
    total = -(-sum(window.length for window in windows) // scorer.group.world_size)
    budget = Budget(max_seconds, sum(window.width for window in windows), scorer, bench)
    with bench.console.task(budget.title, total) as task:
        if not walk(model, scorer, windows, rows, bench, task, budget, opened=opened):
            budget.stop()


def walk(
    model: GPT,
    scorer: Scorer,
    windows: Sequence[Window],
    rows: int,
    bench: Bench,
    task: Task,
    budget: Budget,
    phase: int = 0,
    opened: bool = False,
) -> bool:
    """Score `windows` with fixed weights, `rows` at a time, those of similar width together; documents keep their
    inner order. False when the budget ended it before all were scored.

    Processes of a group share out whole documents. opened: the windows lie in a region that was opened, so they are
    shared out one by one.
    """
    mine = batches(windows, rows, scorer.group.rank, scorer.group.world_size, opened)

    def forward(batch: list[Window]) -> Tensor:
        return window_log_probs(model, scorer, batch, bench.attention, forward=bench.forward)

    return score_batches(scorer, mine, forward, task, budget, phase)


@torch.no_grad()
def score_batches(
    scorer: Scorer,
    mine: list[list[Window]],
    forward: Callable[[list[Window]], Tensor],
    task: Task,
    budget: Budget,
    phase: int = 0,
) -> bool:
    """Score this process's batches; forward gives their log-probabilities. False when the budget ended it early: all
    processes end after the same number of batches."""
    rounds = int(scorer.group.largest([float(len(mine))])[0])
    for index in range(rounds):
        if index < len(mine):
            scorer.score(mine[index], forward(mine[index]), phase)
            budget.done += scorer.group.world_size * sum(window.width for window in mine[index])
            budget.tell(task)
        if index + 1 < rounds and budget.spent():
            return False
    scorer.synchronise()
    return True


def batches(windows: Sequence[Window], rows: int, rank: int, world_size: int, opened: bool) -> list[list[Window]]:
    """The batches of one process: the first windows of all its documents, then the second ones, and so on."""
    waves: dict[int, list[Window]] = {}
    position: dict[int, int] = {}
    for index, window in enumerate(windows):
        wave = 0 if opened else position.get(window.document, 0)
        position[window.document] = wave + 1
        if (index if opened else window.document) % world_size == rank:
            waves.setdefault(wave, []).append(window)
    found = []
    for wave in sorted(waves):
        ordered = waves[wave]
        if not opened:  # an opened region keeps the order of the text: later windows read what earlier ones score
            ordered = sorted(ordered, key=lambda window: (window.width, window.document))
        found += [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    return found

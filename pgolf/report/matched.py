"""Training losses of two groups at the same step and at the same second: the two fair readings of a slower recipe.

At matched steps a recipe that costs more time a step looks better than it is; at matched seconds the machine's load
counts. So both are given, with the throughput beside them. These are training losses: a signal long before there is a
score, and no score.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pgolf.report.runs import Run

if TYPE_CHECKING:
    from pgolf.report.comparison import Group

WINDOW = 0.1  # share of the common part that is averaged: single batches are noise


@dataclass(frozen=True)
class Matched:
    """Mean training loss, nats per token, over the last tenth before a common point, averaged over the shared seeds.

    kind: `step` or `second`; at: the smallest last point of the runs; seeds: those that both sides ran.
    """

    kind: str
    at: float
    base: float
    candidate: float
    seeds: list[int]

    @property
    def gain(self) -> float:
        """Base minus candidate, nats per token: positive when the candidate is better."""
        return self.base - self.candidate


def matched(base: "Group", candidate: "Group") -> list[Matched]:
    """Both readings over the seeds that both sides ran; empty when no such pair has logged steps."""
    left, right = _curves(base), _curves(candidate)
    seeds = sorted(left.keys() & right.keys())
    if not seeds:
        return []
    found = []
    for kind, column in (("step", 0), ("second", 1)):
        at = min(curve[-1, column] for seed in seeds for curve in (left[seed], right[seed]))
        means = [np.mean([_before(side[seed], column, at) for seed in seeds]) for side in (left, right)]
        if np.isfinite(means).all():
            found.append(Matched(kind, float(at), float(means[0]), float(means[1]), seeds))
    return found


def tokens_per_second(group: "Group") -> float | None:
    """Mean training throughput of the runs' summaries, None where none is recorded."""
    rates = []
    for run in group.runs:
        train: dict[str, Any] = run.summary.get("train") or {}
        if train.get("seconds") and train.get("tokens"):
            rates.append(train["tokens"] / train["seconds"])
    return float(np.mean(rates)) if rates else None


def _curves(group: "Group") -> dict[int, np.ndarray]:
    """seed -> [n, 3] of step, seconds, training loss; a seed that ran twice counts by its first run."""
    curves: dict[int, np.ndarray] = {}
    for run in group.runs:
        curve = _curve(run)
        if len(curve):
            curves.setdefault(run.seed, curve)
    return curves


def _curve(run: Run) -> np.ndarray:
    rows = [
        (event["step"], event["seconds"], event["train_loss"])
        for event in run.events()[0]
        if event["event"] == "step" and {"step", "seconds", "train_loss"} <= event.keys()
    ]
    return np.array(rows, np.float64).reshape(-1, 3)


def _before(curve: np.ndarray, column: int, at: float) -> float:
    """Mean loss of the points in ((1 - WINDOW) * at, at]; NaN when there are none."""
    inside = (curve[:, column] <= at) & (curve[:, column] > (1 - WINDOW) * at)
    return float(curve[inside, 2].mean()) if inside.any() else float("nan")

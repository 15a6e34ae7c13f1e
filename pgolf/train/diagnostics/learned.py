"""Gains, scales, mixes and gates as training moves them: a few numbers for each, often enough to draw."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pgolf.model.roles import parameter_roles

POINTS = 64
"""Records of a run, evenly over its budget. One costs three small reductions a parameter and one transfer."""
ROWS = 64
"""The most rows that are summarised one by one; a larger table is one row."""
DIGITS = 6


def learned_names(model: nn.Module) -> list[str]:
    """The parameters that are summarised: those of the roles scalar and gate."""
    return [name for name, role in parameter_roles(model).items() if role in ("scalar", "gate")]


@torch.no_grad()
def summaries(weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, list[list[float]]]:
    """[mean, min, max] of every row (all but the last dimension, flattened) of each of `weights` that is named."""
    parts = {name: _rows(weights[name].detach().float()) for name in names}
    if not parts:
        return {}
    found = [torch.stack([rows.mean(1), rows.amin(1), rows.amax(1)], 1) for rows in parts.values()]
    values = iter(torch.cat(found).tolist())  # one transfer
    return {name: [[_short(one) for one in next(values)] for _ in range(len(rows))] for name, rows in parts.items()}


def _rows(value: Tensor) -> Tensor:
    rows = value.reshape(-1, value.shape[-1]) if value.ndim else value.reshape(1, 1)
    return rows if len(rows) <= ROWS else value.reshape(1, -1)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


class Recorder:
    """Says when a record is due: POINTS times in a budget, the first step included."""

    def __init__(self) -> None:
        self._last = -1

    def due(self, fraction: float) -> bool:
        """Whether the step that begins at `fraction` of the budget is recorded."""
        point = int(fraction * POINTS)
        if point == self._last:
            return False
        self._last = point
        return True

"""What every strategy is: something that walks the validation text through the scorer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.kernels.attend import Attention
from pgolf.kernels.packing import Packing
from pgolf.model.context import Adapters, Context
from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.forward import Forward, log_probs_at


@dataclass(frozen=True)
class Bench:
    """What a strategy works with besides its own settings: the seed of its random draws, the attention back end,
    where to report, what time it is (seconds), whether someone asks the work to end, and the forward, which may be
    compiled."""

    seed: int
    attention: Attention
    console: Console
    title: str = "score"
    log: Callable[[dict[str, object]], None] = lambda event: None
    clock: Callable[[], float] = time.monotonic
    asked: Callable[[], bool] = lambda: False
    forward: Forward = log_probs_at


class Strategy(Protocol):
    """A strategy may change the model's weights, but only by what the scorer has revealed."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score every position of every document once. The model is left in whatever state scoring ended in."""


def window_log_probs(
    model: GPT,
    scorer: Scorer,
    windows: Sequence[Window],
    attention: Attention,
    adapters: Adapters | None = None,
    forward: Forward = log_probs_at,
) -> Tensor:
    """One forward over `windows`; log-probabilities fp32 [B, C, V] of their scored positions, aligned at each
    window's first one."""
    tokens = scorer.inputs(windows)
    longest = max(window.length for window in windows)
    first = torch.tensor([window.first_column for window in windows], device=tokens.device)
    columns = (first[:, None] + torch.arange(longest, device=tokens.device)).clamp_max(tokens.shape[1] - 1)
    with model.precision.autocast(scorer.group.device):
        return forward(model, tokens, columns, Context(attention, adapters=adapters))


def packed_log_probs(
    model: GPT, scorer: Scorer, windows: Sequence[Window], attention: Attention, forward: Forward = log_probs_at
) -> Tensor:
    """As `window_log_probs`, with the windows one behind the other in one flat row; attention stays inside each.

    Every position of a window must be scored. A part that reads the token before (a smear gate) reads that of the
    window before, as in the packed rows of training.
    """
    widths = torch.tensor([window.width for window in windows])
    boundaries = torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
    inside = torch.arange(int(widths.max())) < widths[:, None]
    device = scorer.group.device
    context = Context(attention, Packing.from_cu_seqlens(boundaries).to(device))
    tokens = scorer.inputs(windows)[inside.to(device)][None]
    with model.precision.autocast(device):
        found = forward(model, tokens, torch.arange(tokens.shape[1], device=device)[None], context)[0]
    log_probs = found.new_zeros(*inside.shape, found.shape[-1])
    log_probs[inside.to(device)] = found
    return log_probs

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


@dataclass(frozen=True)
class Bench:
    """What a strategy works with besides its own settings: the seed of its random draws, the attention back end,
    where to report, what time it is (seconds), and whether someone asks the work to end."""

    seed: int
    attention: Attention
    console: Console
    title: str = "score"
    log: Callable[[dict[str, object]], None] = lambda event: None
    clock: Callable[[], float] = time.monotonic
    asked: Callable[[], bool] = lambda: False


class Strategy(Protocol):
    """A strategy may change the model's weights, but only by what the scorer has revealed."""

    def run(self, model: GPT, scorer: Scorer, bench: Bench) -> None:
        """Score every position of every document once. The model is left in whatever state scoring ended in."""


def window_log_probs(
    model: GPT, scorer: Scorer, windows: Sequence[Window], attention: Attention, adapters: Adapters | None = None
) -> Tensor:
    """One forward over `windows`; log-probabilities fp32 [B, C, V] of their scored positions, aligned at each
    window's first one."""
    context = Context(attention, adapters=adapters)
    with model.precision.autocast(scorer.group.device):
        hidden = model(scorer.inputs(windows), context)
        longest = max(window.length for window in windows)
        first = torch.tensor([window.first_column for window in windows], device=hidden.device)
        columns = (first[:, None] + torch.arange(longest, device=hidden.device)).clamp_max(hidden.shape[1] - 1)
        wanted = hidden.gather(1, columns[..., None].expand(-1, -1, hidden.shape[-1]))
        return torch.log_softmax(model.logits(wanted, context), dim=-1)


def packed_log_probs(model: GPT, scorer: Scorer, windows: Sequence[Window], attention: Attention) -> Tensor:
    """As `window_log_probs`, with the windows one behind the other in one flat row; attention stays inside each.

    Every position of a window must be scored. A part that reads the token before (a smear gate) reads that of the
    window before, as in the packed rows of training.
    """
    widths = torch.tensor([window.width for window in windows])
    boundaries = torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
    inside = torch.arange(int(widths.max())) < widths[:, None]
    device = scorer.group.device
    context = Context(attention, Packing.from_cu_seqlens(boundaries).to(device))
    with model.precision.autocast(device):
        logits = model.logits(model(scorer.inputs(windows)[inside.to(device)][None], context), context)[0]
    log_probs = logits.new_zeros(*inside.shape, logits.shape[-1])
    log_probs[inside.to(device)] = torch.log_softmax(logits, dim=-1)
    return log_probs

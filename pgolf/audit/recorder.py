"""An observer that writes down what a strategy was given, what it predicted, and whether state moved in between."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from pgolf.model.context import Context
from pgolf.score.scorer import Window


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Recorder:
    """Records the full log-probability vector of every scored position, and the state around it: weights and buffers
    of the model and its adapters, and how many steps any optimiser of torch has made (of parameters that no module
    holds, too).

    vectors: fp32 [V] by position. edges: first and last position of every scored window. first_input, first_score:
    fingerprint of the model when the first input was handed out, and when the first position was scored. moved:
    positions whose inputs were handed out under another state than the one that scored them, or whose adapters changed
    between forward and score.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handed_out: dict[int, tuple[str, int]] = {}
        self._adapters: nn.Module | None = None
        self._adapters_at_forward = ""
        self._steps = 0
        self._hooks = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            register_optimizer_step_post_hook(self._after_step),
        ]
        self.vectors: dict[int, Tensor] = {}
        self.edges: list[int] = []
        self.first_input: str | None = None
        self.first_score: str | None = None
        self.moved: list[int] = []

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def handed_out(self, windows: Sequence[Window]) -> None:
        """Remember under which state each position's surroundings were first seen."""
        weights = fingerprint(self._model)
        if self.first_input is None:
            self.first_input = weights
        for window in windows:
            # The context too: in a region that was opened it need not be scored yet. Its first token is most often the
            # first of a document, which is known before it is charged to the document before.
            for position in range(window.context_start + 1, window.score_end):
                self._handed_out.setdefault(position, (weights, self._steps))

    def scored(self, windows: Sequence[Window], log_probs: Tensor) -> None:
        """Keep the vectors; compare the state with the one at hand-out."""
        weights = fingerprint(self._model)
        if self.first_score is None:
            self.first_score = weights
        adapters_moved = self._adapters is not None and fingerprint(self._adapters) != self._adapters_at_forward
        for row, window in enumerate(windows):
            self.edges += [window.score_start, window.score_end - 1]
            for column in range(window.length):
                position = window.score_start + column
                self.vectors[position] = log_probs[row, column].float().cpu().clone()
                if adapters_moved or self._handed_out.get(position) != (weights, self._steps):
                    self.moved.append(position)

    def _after_step(self, *_: Any) -> None:
        self._steps += 1

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        contexts = [value for value in (*args, *kwargs.values()) if isinstance(value, Context)]
        adapters = contexts[0].adapters if contexts else None
        self._adapters = adapters if isinstance(adapters, nn.Module) else None
        self._adapters_at_forward = fingerprint(self._adapters) if self._adapters is not None else ""


@contextlib.contextmanager
def learning_frozen() -> Iterator[None]:
    """While the block runs, every optimiser of torch steps with a learning rate of 0: what was learned from one
    document cannot reach another, what is read across their border still can."""
    rates: dict[int, list[Any]] = {}

    def before(optimizer: Optimizer, *_: Any) -> None:
        rates[id(optimizer)] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0

    def after(optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, rates.pop(id(optimizer)), strict=True):
            group["lr"] = rate

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

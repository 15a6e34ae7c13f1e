"""An observer that writes down what a strategy was given, what it predicted, and whether state moved in between."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
    """Records the full log-probability vector of every scored position, and the state of model and adapters around it.

    vectors: fp32 [V] by position. first_state: fingerprint of the model when the first input was handed out. moved:
    positions whose inputs were handed out under another state of the model than the one that scored them, or whose
    adapters changed between forward and score.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handed_out: dict[int, str] = {}
        self._adapters: nn.Module | None = None
        self._adapters_at_forward = ""
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self.vectors: dict[int, Tensor] = {}
        self.first_state: str | None = None
        self.moved: list[int] = []

    def close(self) -> None:
        """Stop watching the model."""
        self._hook.remove()

    def handed_out(self, windows: Sequence[Window]) -> None:
        """Remember under which state each position's surroundings were first seen."""
        state = fingerprint(self._model)
        if self.first_state is None:
            self.first_state = state
        for window in windows:
            # The context too: in a region that was opened it need not be scored yet. Its first token is most often the
            # first of a document, which is known before it is charged to the document before.
            for position in range(window.context_start + 1, window.score_end):
                self._handed_out.setdefault(position, state)

    def scored(self, windows: Sequence[Window], log_probs: Tensor) -> None:
        """Keep the vectors; compare the state with the one at hand-out."""
        state = fingerprint(self._model)
        adapters_moved = self._adapters is not None and fingerprint(self._adapters) != self._adapters_at_forward
        for row, window in enumerate(windows):
            for column in range(window.length):
                position = window.score_start + column
                self.vectors[position] = log_probs[row, column].float().cpu().clone()
                if adapters_moved or self._handed_out.get(position) != state:
                    self.moved.append(position)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        contexts = [value for value in (*args, *kwargs.values()) if isinstance(value, Context)]
        adapters = contexts[0].adapters if contexts else None
        self._adapters = adapters if isinstance(adapters, nn.Module) else None
        self._adapters_at_forward = fingerprint(self._adapters) if self._adapters is not None else ""

"""A coupled relaxation whose steps are inverted for the backward pass instead of remembered.

y <- (1 - b) y + b f(z); z <- (1 - b) z + b f(y), from y = z = x, `iterations` times. Autograd records every evaluation
of f as usual, but in place of the tensors that it would keep there are names. When the backward pass asks for the first
of an evaluation, the step is undone, y = (y' - b f(z)) / (1 - b), and what that evaluation of f keeps is what was asked
for. So each evaluation costs one more, and however many there are, the activations of one are in memory at a time.
Gradients go wherever f reads: its input, parameters, adapters, rounded weights.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pgolf.model.context import Walk

Function = Callable[[Tensor, Walk | None], Tensor]
"""f(state, where to put what the evaluation leaves for later parts)."""
States = tuple[Tensor, Tensor]


def relax(
    f: Function, states: States, iterations: int, beta: float, walk: Walk | None = None, tape: "Tape | None" = None
) -> States:
    """y and z [B, T, dim] after `iterations` of both steps, in the dtype that they begin with. walk: gets what the last
    evaluation leaves. tape: undoes the steps for the backward pass; None: autograd remembers all of them."""
    both = list(states)
    for step in range(2 * iterations):
        changed, source = step % 2, both[1 - step % 2]
        leave = walk if step == 2 * iterations - 1 else None
        with nullcontext() if tape is None else tape.names(source):
            value = f(source, leave)
        both[changed] = (1.0 - beta) * both[changed] + beta * value.to(both[changed].dtype)
    if tape is not None:
        tape.end(both)
    return both[0], both[1]


def relax_checkpointed(f: Function, states: States, iterations: int, beta: float, walk: Walk | None) -> States:
    """The same inside a compiled graph, which cannot undo steps: the two states of every iteration are remembered, and
    what f keeps is computed again, except for the last evaluation."""
    both = list(states)
    for step in range(2 * iterations):
        changed, source = step % 2, both[1 - step % 2]
        if step == 2 * iterations - 1:
            value = f(source, walk)
        else:
            value = checkpoint(lambda state: f(state, None), source, use_reentrant=False, preserve_rng_state=False)
        both[changed] = (1.0 - beta) * both[changed] + beta * value.to(both[changed].dtype)
    return both[0], both[1]


class Tape:
    """The steps of one relaxation, as far as the backward pass needs them. f has to do the same every time it is called
    with the same state, whatever it leaves elsewhere.

    on_start: called with the y and z that undoing all steps has come to, once in every backward pass.
    """

    def __init__(self, f: Function, beta: float, on_start: Callable[[Tensor, Tensor], None]) -> None:
        self._f, self._beta, self._on_start = f, beta, on_start
        self._counts: list[int] = []  # of the tensors that each step would keep
        self._differentiable: list[bool] = []  # whether the state that f read had a gradient
        self._autocast: AbstractContextManager[Any] = nullcontext()
        self._final: list[Tensor] = []
        self._states: list[Tensor] = []
        self._step, self._kept = -1, list[Tensor]()  # the step undone last, and what its evaluation keeps

    def names(self, source: Tensor) -> saved_tensors_hooks:
        """Around the evaluation of the next step, at `source`: autograd gets names for what it would keep."""
        step = len(self._counts)
        self._counts.append(0)
        self._differentiable.append(source.requires_grad)
        self._autocast = _autocast(source.device.type)

        def pack(tensor: Tensor) -> tuple[int, int]:
            self._counts[step] += 1
            return step, self._counts[step] - 1

        return saved_tensors_hooks(pack, lambda name: self._look_up(*name))

    def end(self, states: list[Tensor]) -> None:
        """The states after the last step; they are without gradient here, or the graph would hold itself."""
        self._final = [state.detach() for state in states]
        self._step = len(self._counts)

    def _look_up(self, step: int, index: int) -> Tensor:
        if step > self._step or not self._states:  # a backward pass begins
            self._states, self._step, self._kept = list(self._final), len(self._counts), []
        while self._step > step:
            self._undo()
        return self._kept[index]

    def _undo(self) -> None:
        step = self._step - 1
        changed, source = step % 2, self._states[1 - step % 2].detach()
        kept: list[Tensor] = []

        def pack(tensor: Tensor) -> None:
            kept.append(tensor.detach())

        with torch.enable_grad(), self._autocast, saved_tensors_hooks(pack, _never):
            value = self._f(source.requires_grad_(self._differentiable[step]), None)
        if len(kept) != self._counts[step]:
            raise RuntimeError(
                f"an evaluation kept {self._counts[step]} tensors, and {len(kept)} when it was repeated for the "
                "backward pass: it does not do the same every time"
            )
        with torch.no_grad():
            value = value.detach().to(self._final[0].dtype)
            self._states[changed] = (self._states[changed] - self._beta * value) / (1.0 - self._beta)
            self._step, self._kept = step, kept
            if step == 0:
                self._on_start(self._states[0], self._states[1])


def _autocast(device: str) -> AbstractContextManager[Any]:
    """The autocast that is on now, to be entered again."""
    return torch.autocast(
        device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), torch.is_autocast_cache_enabled()
    )


def _never(_: Any) -> Tensor:
    raise RuntimeError("an evaluation that was repeated to undo its step is not differentiated itself")

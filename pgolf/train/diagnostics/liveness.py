"""Parameters that training does not change although the forward pass reads them.

Published instances: tables and adapters that were in no optimiser, a switch that a compiler folded away, a gate behind
a product that stays zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.console import Console, Silent
from pgolf.distributed import Group
from pgolf.model.control import controlled
from pgolf.model.gpt import GPT
from pgolf.optim.roles import RoleOptimizers
from pgolf.train.state import Progress

STEPS = 10
"""Steps of a verdict. Products whose factors begin at zero let a gradient through after a step each."""

UNREACHED, PARTLY, IDLE, ALIVE = range(4)
WHY = {
    "gradient": "its gradient was zero in all of {steps} steps",
    "update": "it has a gradient, but {steps} steps did not change it",
    "unreached": "no forward pass of training read it",
}


@dataclass
class _Window:
    """Steps over which parameters are watched. before: their values at its beginning; reached, moved: the steps
    in which each had a gradient, and one that was not zero."""

    before: dict[str, Tensor]
    reached: dict[str, int]
    moved: dict[str, Tensor]
    steps: int = 0


class Liveness:
    """Watches every parameter for `length` steps from the first window in which a forward reads it throughout.

    What the autograd graph does not reach (MLPs of repeated visits before recurrence starts, say) has no gradient at
    all and is not judged yet. Windows follow each other while there is such a parameter, so all processes ask each
    other at the same steps. The verdicts are in `progress.dead`, each parameter once. optimizers: as they are
    configured; what they give a learning rate of 0 is frozen on purpose, and not watched (published softcaps were left
    out of all optimisers).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: RoleOptimizers,
        group: Group,
        progress: Progress,
        console: Console,
        log: Callable[[dict[str, Any]], None],
        length: int = STEPS,
    ) -> None:
        self.length = length
        steered = {id(one) for part in controlled(model) for one in part.steered()}  # learns without a gradient
        moving = {row["name"] for row in optimizers.table() if row.get("lr") != 0.0}
        named = ((name, one) for name, one in model.named_parameters() if id(one) not in steered)
        self._named = {name: one for name, one in named if one.requires_grad and name in moving}
        self._group, self._progress, self._console, self._log = group, progress, console, log
        self._window: _Window | None = None

    @torch.no_grad()
    def after_backward(self) -> None:
        """Look at this process's own gradients, before they are exchanged and used."""
        if not (names := self._undecided()):
            return
        if self._window is None:
            watched = {name: self._named[name] for name in names}
            zeros = {name: torch.zeros((), device=one.device) for name, one in watched.items()}
            before = {name: one.detach().clone() for name, one in watched.items()}
            self._window = _Window(before, dict.fromkeys(names, 0), zeros)
        window = self._window
        gradients = {name: grad for name in window.before if (grad := self._named[name].grad) is not None}
        if gradients:
            norms = torch._foreach_norm(list(gradients.values()), float("inf"))
            for name, norm in zip(gradients, norms, strict=True):
                window.reached[name] += 1
                window.moved[name] = window.moved[name] + norm.float()
        window.steps += 1

    @torch.no_grad()
    def after_step(self) -> None:
        """At the end of a window, judge what can be judged. Every process calls it after every step."""
        if self._window is None or self._window.steps < self.length:
            return
        window, self._window = self._window, None
        names = list(window.before)
        moved = torch.stack([window.moved[name] for name in names]).tolist()
        states = [_state(window.reached[name], norm, self.length) for name, norm in zip(names, moved, strict=True)]
        agreed = dict(zip(names, self._group.largest([float(one) for one in states]), strict=True))
        unchanged = self._unchanged(window)
        self._progress.undecided = [name for name in names if agreed[name] in (UNREACHED, PARTLY)]
        for name in names:
            if agreed[name] == IDLE:
                self._report(name, "gradient")
            elif agreed[name] == ALIVE and name in unchanged:
                self._report(name, "update")

    def conclude(self) -> None:
        """Report what no forward ever read, where there were steps enough to tell."""
        if self._progress.step >= self.length and self._progress.undecided is not None:
            for name in self._progress.undecided:
                if self._window is None or not self._window.reached.get(name):
                    self._report(name, "unreached")

    def _undecided(self) -> list[str]:
        known = self._progress.undecided
        return list(self._named) if known is None else [name for name in known if name in self._named]

    def _unchanged(self, window: _Window) -> set[str]:
        before = list(window.before.values())
        norms = torch._foreach_norm(torch._foreach_sub([self._named[name] for name in window.before], before), 1)
        zero = torch.stack([norm.float() for norm in norms]).eq(0.0).tolist()
        return {name for name, same in zip(window.before, zero, strict=True) if same}

    def _report(self, name: str, why: str) -> None:
        if any(one["parameter"] == name for one in self._progress.dead):
            return
        found = {"parameter": name, "why": why, "steps": self.length, "step": self._progress.step}
        self._progress.dead = [*self._progress.dead, found]
        self._log({"event": "dead_parameter", **found})
        self._console.say(f"warning: {sentence(found)}")


def _state(reached: int, moved: float, length: int) -> int:
    """What a process knows of a parameter after a window of `length` steps."""
    if moved > 0.0:
        return ALIVE
    return UNREACHED if reached == 0 else IDLE if reached == length else PARTLY


def dead_parameters(
    model: GPT, optimizers: RoleOptimizers, loss: Callable[[], Tensor], length: int = STEPS
) -> list[dict[str, Any]]:
    """The verdicts of `length` steps under each of the model's plans, in one process; `sentence` says them. loss: of a
    batch, anew for each step. Changes the model."""
    progress = Progress()
    alone = Group(0, 1, next(model.parameters()).device)
    watch = Liveness(model, optimizers, alone, progress, Silent(), lambda event: None, length)
    for name in model.plans:
        model.begin_plan(name)
        for _ in range(length):
            optimizers.zero_grad()
            loss().backward()
            watch.after_backward()
            optimizers.step()
            progress.step += 1
            watch.after_step()
    watch.conclude()
    return progress.dead


def sentence(found: Mapping[str, Any]) -> str:
    """A verdict for people."""
    return (
        f"the parameter {found['parameter']} does not learn: {WHY[found['why']].format(**found)} (step {found['step']})"
    )

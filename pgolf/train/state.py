"""Everything that training must remember to go on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from pgolf.data.loaders import Prefetch
from pgolf.distributed import Group
from pgolf.model.gpt import GPT
from pgolf.optim.averaging import Averaging
from pgolf.optim.clip import Clip
from pgolf.optim.roles import RoleOptimizers
from pgolf.train.positions import position_of


class Remembering(Protocol):
    """What has a state that a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain data and tensors on the CPU."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a state."""
        ...


@dataclass
class Progress:
    """Where training stands. data_seconds: how long it has waited for batches; sequence_tokens: of the present stage,
    which began at the step changed_at (None: the first); rounded_at: the first step with rounded weights (None: none so
    far); turns: the events of the schedules so far; missed: at the end, a sentence for each that never came; dead:
    parameters that do not learn; undecided: those of which that is not known yet (None: all); recompiles: graphs that
    the compiler made while steps waited. Lists are replaced and never changed: a checkpoint may hold them."""

    step: int = 0
    tokens: int = 0
    data_seconds: float = 0.0
    looped_at: int | None = None
    sequence_tokens: int | None = None
    changed_at: int | None = None
    rounded_at: int | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    dead: list[dict[str, Any]] = field(default_factory=list)
    undecided: list[str] | None = None
    recompiles: int = 0


@dataclass
class Session:
    """The parts of a run that change while it trains."""

    model: GPT
    optimizers: RoleOptimizers
    average: Averaging
    clip: Clip
    loader: Prefetch
    progress: Progress
    rounding: Remembering | None = None

    def gathered(self, group: Group, seconds: float) -> dict[str, Any]:
        """The state of all ranks together. Every rank calls it after a whole step, and each gets all of it.

        The tensors are those that training goes on to change.
        """
        learned = {} if self.rounding is None else {"rounding": self.rounding.state_dict()}
        own = {"loader": self.loader.state_dict(), "random": _random_state(group.device)}
        return learned | {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "average": self.average.state_dict(),
            "clip": self.clip.state_dict(),
            "ranks": group.gather(own),
            "progress": dict(vars(self.progress)),
            "train_seconds": seconds,
            "plan": self.model.plan_name,
        }

    def restore(self, state: dict[str, Any], group: Group) -> float:
        """Go on where `state` was gathered, by as many ranks or, where the loader can, by another number; gives the
        seconds of training until then. UserError where it cannot."""
        ranks = state["ranks"]
        self.loader.load_state_dict(position_of([rank["loader"] for rank in ranks], self.loader.state_dict()))
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.average.load_state_dict(state["average"])
        self.clip.load_state_dict(state["clip"])
        vars(self.progress).update(state["progress"])
        if self.rounding is not None:
            self.rounding.load_state_dict(state["rounding"])
        self.model.set_plan(state["plan"])
        if len(ranks) == group.world_size:
            _set_random_state(ranks[group.rank]["random"], group.device)
        return float(state["train_seconds"])


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's own generators; pgolf draws from named streams, other code may not."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)

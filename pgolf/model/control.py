"""Parts that move something of themselves after every optimiser step, by what the step's forwards left."""

from abc import ABC, abstractmethod

from torch import nn

from pgolf.distributed import Group
from pgolf.model.context import Walk


class Controlled(ABC):
    """A module with a controller: no gradient moves what it moves. index: its place among those of the model, by which
    it finds what it kept in a walk."""

    index: int = 0

    @abstractmethod
    def steered(self) -> list[nn.Parameter]:
        """The parameters that it moves."""

    @abstractmethod
    def begin_step(self, step: int) -> None:
        """Forget what earlier forwards left: rehearsals and scores in between do not count. step: that begins, from 0;
        what is drawn at random is drawn from its number, so that a resumed run draws the same."""

    @abstractmethod
    def observe(self, walk: Walk) -> None:
        """Take note of what the module kept in the walk of a forward that has ended."""

    @abstractmethod
    def end_step(self, group: Group) -> None:
        """Move by what was observed since `begin_step`, on all ranks alike; every rank calls it together."""


def controlled(model: nn.Module) -> list[Controlled]:
    """The parts of a model that have a controller, in order, with their places among them."""
    found: list[Controlled] = [module for module in model.modules() if isinstance(module, Controlled)]
    for index, part in enumerate(found):
        part.index = index
    return found

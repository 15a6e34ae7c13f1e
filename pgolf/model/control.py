"""Parts that move something of themselves after every optimiser step, by what the step's forwards left."""

from abc import ABC, abstractmethod

from torch import nn

from pgolf.distributed import Group


class Controlled(ABC):
    """A module with a controller: no gradient moves what it moves."""

    @abstractmethod
    def begin_step(self) -> None:
        """Forget what earlier forwards left: rehearsals and scores in between do not count."""

    @abstractmethod
    def end_step(self, group: Group) -> None:
        """Move by what the forwards since `begin_step` left, on all ranks alike; every rank calls it together."""


def controlled(model: nn.Module) -> list[Controlled]:
    """The parts of a model that have a controller, in order."""
    return [module for module in model.modules() if isinstance(module, Controlled)]

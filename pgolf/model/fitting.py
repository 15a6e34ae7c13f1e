"""How an optional part finds its places in a model that is otherwise made."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


class Fitting(Protocol):
    """A part that changes several places of a model, or replaces modules there."""

    def fit(self, model: "GPT") -> None:
        """Change `model`, all of whose modules are made and none of whose parameters has its value yet. Raises
        ValueError when the model has no place for it."""
        ...

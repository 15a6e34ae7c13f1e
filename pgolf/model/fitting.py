"""How an optional part finds its places in a model that is otherwise made."""

from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    from pgolf.model.block import Block
    from pgolf.model.gpt import GPT


class Fitting(Protocol):
    """A part that changes several places of a model, or replaces modules there."""

    def fit(self, model: "GPT") -> None:
        """Change `model`, all of whose modules are made and none of whose parameters has its value yet. Raises
        ValueError when the model has no place for it."""
        ...


class Fittings(TypedDict, total=False):
    """The optional parts of that kind which a model takes, by the name of their group, in the order in which they find
    their places. A new one is a line here."""

    state_space: Fitting | None  # the first: others ask which blocks have attention
    embedding: Fitting | None
    bigram: Fitting | None
    value_embedding: Fitting | None
    mlp_smear: Fitting | None
    block_gate: Fitting | None
    running_mean: Fitting | None
    skips: Fitting | None
    differential: Fitting | None
    entmax: Fitting | None
    query_gain: Fitting | None
    recurrence: Fitting | None
    equilibrium: Fitting | None
    legendre: Fitting | None
    phinta: Fitting | None
    mlp_dropout: Fitting | None
    basis: Fitting | None
    matrix_init: Fitting | None  # the last: it is about all matrices


def fit_all(model: "GPT", fittings: Fittings) -> None:
    """Let every part that is there find its places. Raises TypeError for one that `Fittings` does not name, as Python
    does for an argument that does not exist."""
    given: dict[str, Fitting | None] = dict(fittings)  # type: ignore[arg-type]
    if unknown := sorted(given.keys() - Fittings.__annotations__.keys()):
        raise TypeError(f"GPT got an unexpected keyword argument {unknown[0]!r}")
    for part in (given.get(name) for name in Fittings.__annotations__):
        if part is not None:
            part.fit(model)


def on_one_stream(model: "GPT", name: str) -> list["Block"]:
    """The blocks that some plan walks on one stream, for a part that lanes do not pass. ValueError, about the part
    `name`, when there is none."""
    found = {step.block for plan in model.plans.values() for step in plan.passes if step.form != "lanes"}
    if not found:
        raise ValueError(f"{name}: every block is walked on lanes, which it does not act on; set model/lanes=none")
    return [model.blocks[layer] for layer in sorted(found)]

"""Lipschitz accounting in training: the named terms of pgolf.model.lipschitz, over the steps."""

from collections.abc import Callable
from typing import Any

from pgolf.model.gpt import GPT
from pgolf.model.lipschitz import named_terms


class Lipschitz:
    """After the first step, and every `every` steps, the largest singular value of every matrix, the query gains with
    the bounds of scores that follow, temperature and multiplier of the logits, and for each block a bound of its named
    terms and their product (jzmyres' fork logged such terms, and gave no formula: these are this project's). They are
    no bound of the network: pgolf.model.lipschitz says what is held still.

    One eigenvalue problem in fp64 for each matrix and moment, no forward, and no budget counts it. Raises ValueError
    when every < 1.
    """

    event = "lipschitz"

    def __init__(self, *, every: int) -> None:
        if every < 1:
            raise ValueError(f"diagnostics every={every} must be at least 1")
        self.every = every

    def due(self, model: GPT, step: int) -> bool:
        """Whether the terms are taken down after `step` steps."""
        return step == 1 or step % self.every == 0

    def record(self, model: GPT, forward: Callable[[], Any]) -> dict[str, Any]:
        """The terms; nothing is run."""
        return named_terms(model)

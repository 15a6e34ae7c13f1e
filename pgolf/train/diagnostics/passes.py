"""How alike the visits of a looped block are: do repeated passes go on, or undo each other?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pgolf.model.gpt import GPT
from pgolf.model.plan import Pass

Deltas = dict[int, list[Tensor]]
"""By block, what each visit added to the stream, [B, T, dim]."""


class PassCosine:
    """Every `every` steps, for each block that the plan visits again, the cosine between what successive visits add:
    cos(d[v], d[v+1]) with d = block out - block in, mean over the tokens of one micro-batch of the first process.

    One more forward each time, which no budget counts. What a wiring does with a visit's output afterwards (alphas,
    lanes' factors) is no part of d; on two lanes d is that of their mean. Source: leon2k2k2k, specs 015-021. Raises
    ValueError when every < 1.
    """

    def __init__(self, *, every: int) -> None:
        if every < 1:
            raise ValueError(f"diagnostics every={every} must be at least 1")
        self.every = every

    event = "passes"

    def due(self, model: GPT, step: int) -> bool:
        """Whether there is something to measure after `step` steps."""
        return step % self.every == 0 and any(visits > 1 for visits in model.plan.visits(len(model.blocks)))

    def record(self, model: GPT, forward: Callable[[], Any]) -> dict[str, Any]:
        """What `measure` gives, as `cosine`."""
        return {"cosine": self.measure(model, forward)}

    def measure(self, model: GPT, forward: Callable[[], Any]) -> dict[str, list[float]]:
        """Cosines by block, one for each pair of successive visits; `forward` runs the model on some text."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), _watched(model) as deltas:
                forward()
        finally:
            model.train(training)
        return {str(block): _cosines(visits) for block, visits in sorted(deltas.items()) if len(visits) > 1}


def _cosines(visits: list[Tensor]) -> list[float]:
    similar = nn.functional.cosine_similarity
    return [float(similar(one, other, dim=-1).mean()) for one, other in pairwise(visits)]


@contextmanager
def _watched(model: GPT) -> Iterator[Deltas]:
    """The deltas of all blocks that are walked inside the block of code."""
    deltas: Deltas = {}

    def note(step: Pass, before: Tensor, after: Tensor) -> None:
        deltas.setdefault(step.block, []).append(after.float() - before.float())

    def of_block(module: nn.Module, inputs: Any, output: Tensor) -> None:
        note(inputs[2], inputs[0], output)

    def of_lanes(module: nn.Module, inputs: Any, output: list[Tensor]) -> None:
        note(inputs[3], torch.stack(inputs[0]).mean(0), torch.stack(output).mean(0))

    hooks = [block.register_forward_hook(of_block) for block in model.blocks]
    if model.lanes is not None:
        hooks.append(model.lanes.register_forward_hook(of_lanes))
    try:
        yield deltas
    finally:
        for hook in hooks:
            hook.remove()

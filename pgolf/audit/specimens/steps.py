"""What the specimen strategies share."""

import torch
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.score.scorer import Scorer, Window
from pgolf.ttt.strategy import Bench, window_log_probs

CHUNK = 8


def chunks(scorer: Scorer, size: int = CHUNK) -> list[Window]:
    """Windows over all documents, each scoring `size` positions from all that is before them in their document."""
    return [
        Window(document, first, start, min(start + size, end))
        for document in range(scorer.num_documents)
        for first, end in [scorer.span(document)]
        for start in range(first + 1, end, size)
    ]


def score_plainly(model: GPT, scorer: Scorer, bench: Bench, windows: list[Window] | None = None) -> None:
    """Score windows (all, when none are given) with the model as it is."""
    with torch.no_grad():
        for window in chunks(scorer) if windows is None else windows:
            scorer.score([window], window_log_probs(model, scorer, [window], bench.attention))


def fit(model: GPT, parameters: list[Tensor], inputs: Tensor, bias: Tensor | None, steps: int) -> None:
    """Gradient steps on the next tokens that the inputs themselves give away."""
    if inputs.shape[1] < 2:
        return
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(steps):
        hidden = model(inputs)
        logits = model.logits(hidden if bias is None else hidden + bias)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def given_away(inputs: Tensor, window: Window) -> list[tuple[int, int, int]]:
    """(column among the scored ones, token before it, realised token) for all targets that stand in the window's own
    inputs: all but the last."""
    row = inputs[0].tolist()
    first = window.first_column
    return [(column, row[first + column], row[first + column + 1]) for column in range(window.length - 1)]

"""Training and evaluation: what some parts do in training alone."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode in here, and in its own again afterwards."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)

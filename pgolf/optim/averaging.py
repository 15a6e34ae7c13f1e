"""Exponential moving average of the weights."""

import torch
from torch import Tensor, nn


class ExponentialAverage:
    """average <- decay * average + (1 - decay) * weights after every step, in fp32, starting at the initial weights.

    No bias correction, as in the published records. Raises ValueError when decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"averaging decay={decay} must lie in [0, 1)")
        self.decay = decay
        self.average = {name: value.detach().float().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        weights = [value.detach().float() for value in model.state_dict().values()]
        averages = list(self.average.values())
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, weights, alpha=1.0 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.average

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        for name, value in self.average.items():
            value.copy_(state[name])

"""Averages of the weights over training: exponential ones, plain ones over the warmdown or the last snapshots, several
at once."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pgolf.optim.schedule import Position

Weights = dict[str, Tensor]


class Averaging(Protocol):
    """What the training loop does with an average."""

    @property
    def begun(self) -> bool:
        """Whether it has taken in weights."""
        ...

    def update(self, model: nn.Module, position: Position, lr_scale: float) -> None:
        """Take in the weights after a step; `position` is after it, `lr_scale` the learning-rate multiplier of it."""
        ...

    def weights(self) -> Weights:
        """The averaged weights by name, fp32."""
        ...

    def adopt(self, copies: Mapping[str, str]) -> None:
        """Parameters have just become copies of others (name -> name of the other): so do their averages."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...


class ExponentialAverage:
    """average <- decay * average + (1 - decay) * weights after every step, in fp32, starting at the initial weights.

    No bias correction, as in the published records. Raises ValueError when decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"averaging decay={decay} must lie in [0, 1)")
        self.decay = decay
        self.average = _copy(model)
        self.begun = True

    @torch.no_grad()
    def update(self, model: nn.Module, position: Position | None = None, lr_scale: float = 1.0) -> None:
        """Take in the weights after a step; neither its position nor its learning rate matter."""
        weights = [value.detach().float() for value in model.state_dict().values()]
        averages = list(self.average.values())
        torch._foreach_mul_(averages, self.decay)
        torch._foreach_add_(averages, weights, alpha=1.0 - self.decay)

    def weights(self) -> Weights:
        """The averaged weights by name."""
        return self.average

    def adopt(self, copies: Mapping[str, str]) -> None:
        """Averages of copies become copies of averages."""
        _adopt(self.average, copies)

    def state_dict(self) -> Weights:
        """The averaged weights by name."""
        return self.average

    def load_state_dict(self, state: Weights) -> None:
        """Restore what `state_dict` gave."""
        _restore(self.average, state)


class WarmdownAverage:
    """SWA: the plain mean of the weights at every `every`-th step whose learning-rate multiplier is below `below`.

    `below` is a part of the learning rate and not of time (PR 162: every=50, below=0.5). Sums are fp32. Raises
    ValueError when every < 1 or below is not in (0, 1].
    """

    def __init__(self, model: nn.Module, *, every: int, below: float) -> None:
        if every < 1 or not 0.0 < below <= 1.0:
            raise ValueError(f"averaging every={every} must be at least 1 and below={below} lie in (0, 1]")
        self.every, self.below = every, below
        self.count = 0
        self.total = {name: torch.zeros_like(value) for name, value in _copy(model).items()}

    @property
    def begun(self) -> bool:
        """Whether a step's turn has come."""
        return self.count > 0

    @torch.no_grad()
    def update(self, model: nn.Module, position: Position, lr_scale: float) -> None:
        """Take in the weights after a step when its turn has come."""
        if lr_scale < self.below and position.step % self.every == 0:
            weights = [value.detach().float() for value in model.state_dict().values()]
            torch._foreach_add_(list(self.total.values()), weights)
            self.count += 1

    def adopt(self, copies: Mapping[str, str]) -> None:
        """Sums of copies become copies of sums."""
        _adopt(self.total, copies)

    def weights(self) -> Weights:
        """The mean. ValueError when no step's turn came."""
        if self.count == 0:
            raise ValueError(
                f"the average is empty: no step that is a multiple of {self.every} had a learning-rate multiplier "
                f"below {self.below}. Lower averaging.every or raise averaging.below."
            )
        return {name: value / self.count for name, value in self.total.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums and their number."""
        return {"count": self.count, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.count = int(state["count"])
        _restore(self.total, state["total"])


class LatestSnapshots:
    """LAWA: the plain mean of the last `count` snapshots of the weights, one after every `every`-th step (2026-03-23:
    10 snapshots, every 100 steps).

    Each snapshot is an fp32 copy of the weights. Raises ValueError when every or count is below 1.
    """

    def __init__(self, model: nn.Module, *, every: int, count: int) -> None:
        if every < 1 or count < 1:
            raise ValueError(f"averaging every={every} and count={count} must be at least 1")
        self.every = every
        self.snapshots: deque[Weights] = deque(maxlen=count)
        self._devices = {name: value.device for name, value in model.state_dict().items()}

    @property
    def begun(self) -> bool:
        """Whether there is a snapshot."""
        return bool(self.snapshots)

    @torch.no_grad()
    def update(self, model: nn.Module, position: Position, lr_scale: float = 1.0) -> None:
        """Take in the weights after a step when its turn has come."""
        if position.step % self.every == 0:
            self.snapshots.append(_copy(model))

    def adopt(self, copies: Mapping[str, str]) -> None:
        """Copies are copies in every snapshot."""
        for snapshot in self.snapshots:
            _adopt(snapshot, copies)

    def weights(self) -> Weights:
        """The mean. ValueError when there is no snapshot."""
        if not self.snapshots:
            raise ValueError(f"there is no snapshot: training has no {self.every} steps. Lower averaging.every.")
        names = self.snapshots[0]
        return {name: torch.stack([one[name] for one in self.snapshots]).mean(0) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """The snapshots, oldest first."""
        return {"snapshots": list(self.snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, on the devices of the model."""
        self.snapshots.clear()
        for one in state["snapshots"]:
            self.snapshots.append({name: one[name].to(device).float() for name, device in self._devices.items()})


class SeveralDecays:
    """Exponential averages with several decays from one run; `choose` picks one of them by its loss.

    Each decay costs one fp32 copy of the weights. Raises ValueError when decays repeat or there is none.
    """

    def __init__(self, model: nn.Module, *, decays: Sequence[float]) -> None:
        if not decays or len(set(decays)) < len(decays):
            raise ValueError(f"averaging decays={list(decays)} must be different numbers, at least one")
        self.begun = True
        self.averages = {f"{decay:g}": ExponentialAverage(model, decay=decay) for decay in decays}
        self.chosen: str | None = None

    def update(self, model: nn.Module, position: Position | None = None, lr_scale: float = 1.0) -> None:
        """Take in the weights after a step."""
        for average in self.averages.values():
            average.update(model)

    def adopt(self, copies: Mapping[str, str]) -> None:
        """Averages of copies become copies of averages."""
        for average in self.averages.values():
            average.adopt(copies)

    def candidates(self) -> dict[str, Weights]:
        """The averaged weights by decay."""
        return {decay: average.weights() for decay, average in self.averages.items()}

    def choose(self, loss: Callable[[Weights], float]) -> dict[str, float]:
        """Keep the candidate of least loss; gives all losses.

        `loss` must come from training text that training did not use: chosen on the validation text, the score would
        no longer be one.
        """
        losses = losses_of(self.candidates(), loss)
        self.chosen = min(losses, key=lambda decay: losses[decay])
        return losses

    def weights(self) -> Weights:
        """The chosen candidate. ValueError when none was chosen."""
        if self.chosen is None:
            raise ValueError(f"choose one of the decays {', '.join(self.averages)} first: call choose(loss)")
        return self.averages[self.chosen].weights()

    def state_dict(self) -> dict[str, Any]:
        """Every average by its decay."""
        return {decay: average.state_dict() for decay, average in self.averages.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave. ValueError when it has other decays."""
        if state.keys() != self.averages.keys():
            raise ValueError(f"saved averages have decays {', '.join(state)}; this run has {', '.join(self.averages)}")
        for decay, average in self.averages.items():
            average.load_state_dict(state[decay])


def losses_of(candidates: Mapping[str, Weights], loss: Callable[[Weights], float]) -> dict[str, float]:
    """The loss of every candidate. ValueError when one is not a number: nothing could be chosen by it."""
    losses = {name: float(loss(weights)) for name, weights in candidates.items()}
    if bad := [name for name, value in losses.items() if value != value]:
        raise ValueError(f"the loss of the averaged weights is not a number for {', '.join(bad)}")
    return losses


def _copy(model: nn.Module) -> Weights:
    return {name: value.detach().float().clone() for name, value in model.state_dict().items()}


def _adopt(values: Weights, copies: Mapping[str, str]) -> None:
    for target, source in copies.items():
        values[target].copy_(values[source])


def _restore(into: Weights, saved: Weights) -> None:
    for name, value in into.items():
        value.copy_(saved[name])

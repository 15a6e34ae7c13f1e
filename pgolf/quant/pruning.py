"""Values that are set to zero so that the artifact takes fewer bytes: before quantisation or among its symbols."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgolf.console import Console
from pgolf.quant.container import StoredTensor


class Pruning(Protocol):
    """Zeros before, or after quantisation, or both."""

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights that are quantised."""
        ...

    def symbols(
        self, stored: list[StoredTensor], size: int, size_of: Callable[[list[StoredTensor]], int], console: Console
    ) -> list[StoredTensor]:
        """What is packed, given what was quantised, the bytes of the artifact that holds it, and how to find them for
        another."""
        ...


class Magnitude:
    """The smallest magnitudes of every matrix become zero before it is quantised (PR 162 and the record of 2026-03-20).

    Schemes that round each value by itself keep the zeros; the error feedback of GPTQ moves them again.

    Args:
        share: of the values of a matrix (published: 0.03).
        min_elements: smaller matrices are left alone (published: 65,537).
    """

    def __init__(self, *, share: float = 0.03, min_elements: int = 65_537):
        if not 0 < share < 1:
            raise ValueError(f"share={share}: must lie between 0 and 1.")
        if min_elements < 1:
            raise ValueError(f"min_elements={min_elements}: must be 1 or more.")
        self.share, self.min_elements = share, min_elements

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Matrices without values whose magnitude is below the quantile `share` of the matrix."""
        return {
            name: self._pruned(one)
            if one.ndim == 2 and one.is_floating_point() and one.numel() >= self.min_elements
            else one
            for name, one in state.items()
        }

    def _pruned(self, weight: Tensor) -> Tensor:
        magnitudes = weight.detach().abs().float()
        least = float(np.quantile(magnitudes.cpu().numpy(), self.share))
        return torch.where(magnitudes < least, torch.zeros_like(weight), weight)

    def symbols(
        self, stored: list[StoredTensor], size: int, size_of: Callable[[list[StoredTensor]], int], console: Console
    ) -> list[StoredTensor]:
        """As they are."""
        return stored


class Selective:
    """Symbols -1 and 1 of the matrices become zero, the cheapest first, until the artifact fits (records of 2026-03-25
    to 2026-04-04).

    A symbol's cost is the squared step of its row. The least number that is enough is searched by bisection, to
    a thousandth of the symbols; the records zeroed eight of them for every byte that was too much, once, or compared
    with a target in units of 2^20 bytes, where it never came to it.

    Args:
        target_bytes: of the artifact; the code takes its share of quant.limit_bytes too.
    """

    def __init__(self, *, target_bytes: int):
        if target_bytes < 1:
            raise ValueError(f"target_bytes={target_bytes}: must be 1 or more.")
        self.target_bytes = target_bytes

    def weights(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As they are."""
        return state

    def symbols(
        self, stored: list[StoredTensor], size: int, size_of: Callable[[list[StoredTensor]], int], console: Console
    ) -> list[StoredTensor]:
        """With as many zeros more as it takes; says how many, and when all of them are not enough."""
        if size <= self.target_bytes:
            console.say(f"quant.pruning: {size:,} bytes fit in {self.target_bytes:,}, nothing is pruned")
            return stored
        order = cheapest_first(stored)
        low, high = 0, sum(len(one) for one in order.values())
        found, enough = without(stored, order, high), max(1, high // 1000)
        if (size := size_of(found)) > self.target_bytes:
            console.say(f"quant.pruning: {size:,} bytes without any symbol of 1 do not fit in {self.target_bytes:,}")
            return found
        while high - low > enough:
            count = (low + high) // 2
            tried = without(stored, order, count)
            size = size_of(tried)
            console.say(f"quant.pruning: {size:,} of {self.target_bytes:,} bytes without {count:,} symbols of 1")
            low, high, found = (low, count, tried) if size <= self.target_bytes else (count, high, found)
        console.say(f"quant.pruning: {high:,} symbols of 1 are pruned")
        return found


def _units(tensor: StoredTensor) -> npt.NDArray[np.bool_] | None:
    """Where a matrix has the symbols -1 and 1, bool [rows, cols]; None for what has no steps by row."""
    parts = tensor.encoded.parts
    if tensor.role != "matrix" or tensor.encoded.decoder != "rows" or parts["scales"].ndim != 1:
        return None
    units: npt.NDArray[np.bool_] = np.abs(parts["symbols"]) == 1
    return units


def cheapest_first(stored: list[StoredTensor]) -> dict[str, npt.NDArray[np.int64]]:
    """The place, in the order of rising cost over all matrices, of every symbol -1 and 1 of each matrix, as they follow
    each other in row-major order. Equal costs: in the order of the model."""
    costs: dict[str, npt.NDArray[np.float32]] = {}
    for tensor in stored:
        units = _units(tensor)
        if units is not None:
            steps = tensor.encoded.parts["scales"].astype(np.float32)
            costs[tensor.name] = np.broadcast_to((steps * steps)[:, None], units.shape)[units]
    if not costs:
        return {}
    order = np.argsort(np.concatenate(list(costs.values())), kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    ends = np.cumsum([len(one) for one in costs.values()])
    return dict(zip(costs, np.split(places, ends[:-1]), strict=True))


def without(stored: list[StoredTensor], order: Mapping[str, npt.NDArray[np.int64]], count: int) -> list[StoredTensor]:
    """The tensors with the `count` cheapest symbols at zero."""
    found = []
    for tensor in stored:
        units = _units(tensor) if tensor.name in order else None
        if units is None:
            found.append(tensor)
            continue
        symbols = tensor.encoded.parts["symbols"].copy()
        chosen = np.zeros(units.shape, bool)
        chosen[units] = order[tensor.name] < count
        symbols[chosen] = 0
        parts = tensor.encoded.parts | {"symbols": symbols}
        found.append(replace(tensor, encoded=replace(tensor.encoded, parts=parts)))
    return found

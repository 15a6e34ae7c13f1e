"""Hessian calibration: what GPTQ has to know about the inputs of every weight matrix.

For a linear map y = W x with rows of inputs X [tokens, in_features], the layer-wise loss of a
changed weight is tr(E H E^T) with H = X^T X (Frantar et al., 2022, "GPTQ"). As in the published
record scripts (PR 1394 and later) H is the sum over every call in every batch, divided by the
number of batches, in float32; a layer that depth recurrence runs three times contributes three
times.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from pgolf.console import Console, Silent
from pgolf.errors import UserError

AddUp = Callable[[Tensor], object]


@dataclass(frozen=True)
class Calibration:
    """What is known of one weight matrix [rows, cols] besides its values.

    `hessian` float32 [cols, cols]: X^T X of its inputs, the sum over a batch. `inputs`: input vectors in a batch, all
    calls counted. `row_moments` float32 [rows] or None: how much the loss minds an error of each row, the mean squared
    gradient of the row's outputs up to one factor for all tensors (`collect_row_moments`). `bigrams` or None: how much
    of what it reads belongs to bigrams that come again (`pgolf.quant.bigrams`).
    """

    hessian: Tensor
    inputs: float = 1.0
    row_moments: Tensor | None = None
    bigrams: float | None = None

    def input_rms(self) -> Tensor:
        """Root mean square of every input, float32 [cols]."""
        return (self.hessian.diagonal() / self.inputs).sqrt()

    def cpu(self) -> "Calibration":
        """The same on the CPU."""
        moments = None if self.row_moments is None else self.row_moments.cpu()
        return Calibration(self.hessian.cpu(), self.inputs, moments, self.bigrams)


class HessianCollector:
    """Context manager that listens to `sites` through forward pre-hooks and sums X^T X.

    Sites that name the same module share one hook. Sites whose modules receive the same tensor
    object one after the other (query, key and value read one block input) share the matrix product,
    and the result. The hooks only read their inputs; they are removed when the block ends, also
    after an error.
    """

    def __init__(self, sites: Mapping[str, nn.Module]):
        self._sites = sites
        self._modules = {id(module): module for module in sites.values()}
        self._sums: dict[int, Tensor] = {}
        # The serial numbers of the products that make up a module's sum: equal lists mean equal
        # sums.
        self._products: dict[int, list[int]] = {key: [] for key in self._modules}
        self._counts: dict[int, int] = dict.fromkeys(self._modules, 0)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._latest: tuple[Tensor, int, Tensor] | None = None
        self._serial = 0

    def __enter__(self) -> Self:
        for key, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._hook(key)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._latest = None

    def _hook(self, key: int) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def listen(module: nn.Module, inputs: tuple[object, ...]) -> None:
            if not inputs or not isinstance(inputs[0], Tensor):
                raise TypeError(f"calibration site {self._names(key)[0]} was called without a tensor.")
            self._add(key, inputs[0])

        return listen

    def _add(self, key: int, inputs: Tensor) -> None:
        """Add X^T X of `inputs` [..., in_features] to the sum of one module."""
        product = self._product(inputs.detach(), inputs)
        with torch.no_grad():
            if key in self._sums:
                self._sums[key] += product
            else:
                self._sums[key] = product.clone()
        self._products[key].append(self._serial)
        self._counts[key] += math.prod(inputs.shape[:-1])

    @torch.no_grad()
    def _product(self, values: Tensor, identity: Tensor) -> Tensor:
        """X^T X [in, in] float32; reused while the same unchanged tensor object comes again."""
        # Inference tensors carry no version counter, so a change in place could not be noticed.
        version = -1 if identity.is_inference() else identity._version
        if self._latest is not None and version >= 0:
            known, known_version, product = self._latest
            if known is identity and known_version == version:
                return product
        with torch.autocast(device_type=values.device.type, enabled=False):
            rows = values.reshape(-1, values.shape[-1]).float()
            product = rows.t() @ rows
        self._latest = (identity, version, product)
        self._serial += 1
        return product

    def _names(self, key: int) -> list[str]:
        return [name for name, module in self._sites.items() if id(module) == key]

    def result(self, num_batches: int, add_up: AddUp | None = None) -> dict[str, Calibration]:
        """The calibration of every site; equal sites share one Hessian, float32 [in_features, in_features].

        `add_up`, where given, replaces a tensor by its sum over the ranks, in place: every rank then gets what all of
        them saw. Raises UserError naming a site that no batch reached.
        """
        total = total_batches(num_batches, add_up, next(iter(self._sums.values()), None))
        shared: dict[tuple[int, ...], Tensor] = {}
        calibrations: dict[str, Calibration] = {}
        for name, module in self._sites.items():
            products = tuple(self._products[id(module)])
            if not products:
                raise UserError(
                    f"calibration never called the module of {name}, so its Hessian is unknown; "
                    "check the model's calibration_sites()."
                )
            if products not in shared:
                if add_up is not None:
                    add_up(self._sums[id(module)])
                shared[products] = self._sums[id(module)] / total
            calibrations[name] = Calibration(shared[products], self._counts[id(module)] / num_batches)
        return calibrations


def total_batches(num_batches: int, add_up: AddUp | None, like: Tensor | None) -> float:
    """The batches of all ranks. UserError when this rank saw none: it would add nothing, or not even take part."""
    if num_batches < 1:
        raise UserError("calibration saw no batch: quant.calibration_batches must be 1 or more.")
    if add_up is None or like is None:
        return num_batches
    total = torch.tensor(float(num_batches), device=like.device)
    add_up(total)
    return float(total)


def collect_hessians(
    sites: Mapping[str, nn.Module],
    run_batches: Iterable[Callable[[], object]],
    console: Console | None = None,
    *,
    add_up: AddUp | None = None,
) -> dict[str, Calibration]:
    """Run the calibration batches and return the calibration of every site, without row moments.

    Args:
        sites: weight name -> module whose first positional input X [..., in_features] multiplies
            it.
        run_batches: one callable a batch; each runs the model forward (gradients are switched off
            here).
        console: where progress is shown.
        add_up: sum over the ranks, in place; each must have a batch. None keeps this rank's own statistics, as
            published.

    Returns:
        name -> Calibration, on the device of the activations.
    """
    console = console or Silent()
    num_batches = 0
    with (
        HessianCollector(sites) as collector,
        console.task("calibration", None) as task,
        torch.no_grad(),
    ):
        for run_batch in run_batches:
            run_batch()
            num_batches += 1
            task.update(num_batches)
    return collector.result(num_batches, add_up)


def collect_row_moments(
    weights: Mapping[str, Tensor],
    run_losses: Iterable[Callable[[], Tensor]],
    calibrations: Mapping[str, Calibration],
    console: Console | None = None,
    *,
    add_up: AddUp | None = None,
) -> dict[str, Calibration]:
    """The calibrations with the second moments of the gradients at the outputs of the weights.

    For y = W x with gradients g of the loss at y, the gradient of W is the sum of g x^T over the tokens. Where tokens
    are independent, the expected square of a row of it, summed, is E[g_i^2] times the trace of the Hessian: so
    the moments follow from the gradients of the weights, without hooks, and a tied weight counts all its uses. They
    share one factor, the number of tokens, which steps do not depend on.

    Args:
        weights: name -> parameter [rows, cols] that the losses depend on.
        run_losses: one callable a batch, each gives the mean loss, with gradients.
        calibrations: those of the same weights.
        console: where progress is shown.
        add_up: as in `collect_hessians`.
    """
    console = console or Silent()
    sums = {name: torch.zeros(len(weight), device=weight.device) for name, weight in weights.items()}
    num_batches = 0
    with console.task("gradients", None) as task, torch.enable_grad():
        for run_loss in run_losses:
            gradients = torch.autograd.grad(run_loss(), list(weights.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.float().square().sum(dim=1)
            num_batches += 1
            task.update(num_batches)
    batches = total_batches(num_batches, add_up, next(iter(sums.values()), None))
    result = dict(calibrations)
    for name, total in sums.items():
        if add_up is not None:
            add_up(total)
        given = calibrations[name]
        trace = given.hessian.diagonal().sum().clamp_min(torch.finfo(torch.float32).tiny)
        result[name] = replace(given, row_moments=total / batches / trace)
    return result

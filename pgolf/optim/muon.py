"""Muon: momentum whose update is replaced by its nearest (semi-)orthogonal matrix.

Source: Jordan et al., Muon (2024); banks shared out over ranks: PR 1530.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pgolf.distributed import Group
from pgolf.kernels.fused.kernels import Symmetric
from pgolf.optim.banks import NO_REDUCE_SCATTER, Bank, can_reduce_scatter
from pgolf.optim.decay import Decay, decoupled
from pgolf.optim.newton_schulz import POLAR_EXPRESS, STOCK, Rounding, orthogonalise, orthogonalise_by_gram
from pgolf.optim.spectral import SpectralCap
from pgolf.optim.transforms import Rescaling, State, Transform, unit_rows

CACHED = 2**20  # elements of a bank on a CPU that need not be shared out: caches hold it through a whole update
PrecisionName = Literal["auto", "fp32", "bf16", "bf16_iteration", "bf16_update", "bf16_fast"]


@dataclass(frozen=True)
class Precision:
    """dtypes of the gradient (sent, and in the momentum), of the iteration and of the scaled update that is sent; None:
    as what it is made of."""

    gradient: torch.dtype | None
    iteration: torch.dtype | None
    rounding: Rounding
    update: torch.dtype | None = None


PRECISIONS: dict[str, Precision] = {
    "as_gradient": Precision(None, None, "fused"),
    "fp32": Precision(torch.float32, torch.float32, "fused"),
    "bf16": Precision(torch.bfloat16, torch.bfloat16, "published"),
    "bf16_iteration": Precision(None, torch.bfloat16, "early", update=torch.bfloat16),
    "bf16_fast": Precision(None, torch.bfloat16, "fused"),
    "bf16_update": Precision(None, torch.float32, "fused", update=torch.bfloat16),
}


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; same-shaped matrices are orthogonalised in one batch.

    Per step and matrix: g <- gradient(g); buffer <- momentum * buffer + g; u = g + momentum * buffer (nesterov) or
    buffer; u <- precondition(u); row_normalise: every row of u is divided by its norm (MuonEq-R, PR 1394);
    O = rescale(orthogonalise(u)); p <- p (1 - lr * weight_decay) - lr * sqrt(max(1, rows/cols)) * O.
    gradient, precondition and rescale are None (nothing) or parts of pgolf.optim.transforms; decay: another form of the
    last line, of pgolf.optim.decay; cap: what bounds p behind it (pgolf.optim.spectral).

    precision: `auto` keeps the momentum in the gradient's dtype and iterates in bf16 on a GPU, in the gradient's dtype
    elsewhere; `fp32` all in fp32; `bf16` gradients, momentum and iteration in bf16 (published from PR 1530 on);
    `bf16_iteration` iteration and update (the published scripts before); `bf16_fast` the iteration,
    rounding less often, which `auto` means on a GPU; `bf16_update` the update alone.
    newton_schulz: `direct`, or `gram`: the same iteration with a third fewer operations on long matrices, and in bf16
    with roundings of its own, which err about as much as the published ones (`orthogonalise_by_gram`).

    After `shard`, each rank owns a share of the matrices: a step averages the gradients of the ranks itself.
    Raises ValueError for a parameter that is not a matrix, for a number of iterations that the coefficients do not have
    and for a rate, momentum or decay out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        row_normalise: bool,
        newton_schulz_steps: int,
        coefficients: Literal["stock", "polar_express"],
        precision: PrecisionName = "auto",
        newton_schulz: Literal["direct", "gram"] = "direct",
        gradient: Transform | None = None,
        precondition: Transform | None = None,
        rescale: Rescaling | None = None,
        decay: Decay | None = None,
        cap: SpectralCap | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "row_normalise": row_normalise,
            "newton_schulz_steps": newton_schulz_steps,
            "coefficients": coefficients,
        }
        self.newton_schulz = newton_schulz
        self.decay: Decay = decay if decay is not None else decoupled
        self.precision, self.gradient, self.precondition, self.rescale = precision, gradient, precondition, rescale
        self.cap = cap
        self.symmetric: Symmetric | None = None
        self._group: Group | None = None
        self._scatters = True
        self._banks: list[tuple[int, Bank]] = []  # with the index of their parameter group
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, before the first step. ValueError for what Muon cannot do."""
        if self._banks:
            raise RuntimeError("Muon has begun to step: parameter groups can be added before the first step alone")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for name, most in (("lr", math.inf), ("momentum", 1.0), ("weight_decay", math.inf)):
            if not 0.0 <= group[name] < most:
                raise ValueError(f"{name}={group[name]} of Muon must lie in [0, {most:g})")
        steps, polar = group["newton_schulz_steps"], group["coefficients"] == "polar_express"
        if steps < 1 or (polar and steps > len(POLAR_EXPRESS)):
            raise ValueError(
                f"newton_schulz_steps={steps} must be 1 or more, "
                f"and at most {len(POLAR_EXPRESS)} with coefficients=polar_express"
            )
        for parameter in group["params"]:
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @property
    def is_sharded(self) -> bool:
        """Whether several ranks share the matrices."""
        return self._group is not None and self._group.world_size > 1

    def shard(self, group: Group) -> str | None:
        """Share the matrices out over the ranks of `group`; every rank calls it before the first step.

        Gives a sentence for people when the back end needs a detour, else None.
        """
        if self._banks:
            raise RuntimeError("Muon has begun to step: share it out before the first step")
        self._group, self._scatters = group, can_reduce_scatter(group)
        return None if self._scatters else NO_REDUCE_SCATTER

    def use(self, symmetric: Symmetric) -> int:
        """Compute symmetric products of iterations that round once a product by this kernel from now on. It is compiled
        for all shapes here, so that no step waits for that. Gives the number of matrices it is used for."""
        self.symmetric, used = symmetric, 0
        for group in self.param_groups:
            shapes = {parameter.shape: parameter for parameter in group["params"]}
            precision = self._precision(group["params"][0])
            if self.newton_schulz != "gram" and precision.rounding != "fused":
                continue  # published roundings are those of plain products
            used += len(group["params"])
            for shape, parameter in shapes.items():
                work = parameter.new_zeros((1, *shape), dtype=precision.iteration or precision.gradient)
                self._orthogonalised(work, group, precision)
        return used

    def send_gradients(self) -> None:
        """Start averaging the gradients over the ranks, largest bank first, and return while that is under way."""
        for _, bank in self._all_banks():
            if not bank.awaits:
                bank.send_gradients(self._precision(bank.parameters[0]).gradient)

    def received_gradients(self) -> list[Tensor]:
        """The averaged gradients of the matrices that this rank owns; changed in place (clipping), they are what the
        next step uses."""
        return [bank.receive() for _, bank in self._all_banks() if bank.awaits]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients, those that were sent and not used too."""
        super().zero_grad(set_to_none)
        for _, bank in self._banks:
            bank.forget_gradients()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, on all ranks. The updates of one bank travel while those of the
        next are made."""
        if self.is_sharded:
            self.send_gradients()
        under_way: tuple[Bank, Tensor, Any, float, float] | None = None
        for index, bank in self._all_banks():
            if bank.awaits or (
                not self.is_sharded and bank.send_gradients(self._precision(bank.parameters[0]).gradient)
            ):
                options = self.param_groups[index]
                precision = self._precision(bank.parameters[0])
                updates = self._updates(bank, options, precision)
                scale = bank.scale
                if precision.update is not None:
                    updates, scale = (updates * scale).to(precision.update), 1.0
                every, work = bank.gather(updates)
                if under_way is not None:
                    self._apply(*under_way)
                under_way = (bank, every, work, options["lr"] * scale, options["lr"] * options["weight_decay"])
        if under_way is not None:
            self._apply(*under_way)

    def state_dict(self) -> dict[str, Any]:
        """The whole state in the format of torch's optimisers, whatever the number of ranks. When sharded, every rank
        calls it, and each gets all of it."""
        packed = super().state_dict()
        positions = self._positions()
        for _, bank in self._all_banks():
            for parameter, state in zip(bank.parameters, bank.gathered_state(), strict=True):
                packed["state"][positions[parameter]] = state
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave to any number of ranks; matrices it does not know start without momentum."""
        super().load_state_dict({**state_dict, "state": {}})
        positions = self._positions()
        for _, bank in self._all_banks():
            for value in bank.state.values():
                value.zero_()
            for row, parameter in enumerate(bank.parameters):
                if (state := state_dict["state"].get(positions[parameter])) is not None:
                    bank.load(row, state)

    def _positions(self) -> dict[nn.Parameter, int]:
        parameters = (parameter for group in self.param_groups for parameter in group["params"])
        return {parameter: position for position, parameter in enumerate(parameters)}

    def _all_banks(self) -> list[tuple[int, Bank]]:
        """The banks, largest first as published; made when first asked for."""
        if not self._banks:
            for index, options in enumerate(self.param_groups):
                by_shape: dict[tuple[torch.Size, torch.dtype], list[nn.Parameter]] = {}
                for parameter in options["params"]:
                    by_shape.setdefault((parameter.shape, parameter.dtype), []).append(parameter)
                cut = [part for same in by_shape.values() for part in self._cut(same)]
                self._banks += [(index, Bank(part, self._group, self._scatters)) for part in cut]
            self._banks.sort(key=lambda pair: -pair[1].numel)
            for _, bank in self._banks:
                bank.state = self._initial_state(bank)
        return self._banks

    def _cut(self, same: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The matrices of each bank: all of one shape, but on a CPU alone only as many as its caches hold."""
        alone = self._group is None or self._group.world_size == 1
        count = max(1, CACHED // same[0].numel()) if alone and not same[0].is_cuda else len(same)
        return [same[first : first + count] for first in range(0, len(same), count)]

    def _initial_state(self, bank: Bank) -> State:
        first = bank.parameters[0]
        size = (bank.share, *bank.shape)
        dtype = self._precision(bank.parameters[0]).gradient or first.dtype
        state = {"momentum_buffer": torch.zeros(size, dtype=dtype, device=first.device)}
        for part in (self.rescale, self.cap):
            state |= part.initial_state(*size, first.device) if part is not None else {}
        return state

    def _precision(self, parameter: nn.Parameter) -> Precision:
        automatic = "bf16_fast" if parameter.is_cuda else "as_gradient"
        return PRECISIONS[automatic if self.precision == "auto" else self.precision]

    def _updates(self, bank: Bank, options: dict[str, Any], precision: Precision) -> Tensor:
        """Updates [share, rows, cols] of the owned matrices; zero, with untouched state, for those without gradient."""
        gradients, idle = bank.take(), bank.idle_rows()
        if not idle:
            return self._directions(gradients, bank.state, options, precision)
        busy = [row for row in range(bank.share) if row not in idle]
        state = {name: value[busy] for name, value in bank.state.items()}
        directions = self._directions(gradients[busy], state, options, precision)
        for name, value in state.items():
            bank.state[name][busy] = value
        updates = directions.new_zeros(gradients.shape)
        updates[busy] = directions
        return updates

    def _directions(self, gradients: Tensor, state: State, options: dict[str, Any], precision: Precision) -> Tensor:
        """Gradients [n, rows, cols] -> updates of unit scale; changes `state` and may change `gradients`."""
        if self.gradient is not None:
            gradients = self.gradient(gradients)
        buffer = state["momentum_buffer"].mul_(options["momentum"]).add_(gradients)
        update = _look_ahead(gradients, buffer, options["momentum"]) if options["nesterov"] else buffer
        if self.precondition is not None:
            update = self.precondition(update)
        if options["row_normalise"]:
            update = unit_rows(update)
        direction = self._orthogonalised(update.to(precision.iteration or update.dtype), options, precision)
        return direction if self.rescale is None else self.rescale(direction, state)

    def _orthogonalised(self, work: Tensor, options: dict[str, Any], precision: Precision) -> Tensor:
        """[n, rows, cols] by the configured iteration."""
        coefficients = POLAR_EXPRESS if options["coefficients"] == "polar_express" else STOCK
        steps = options["newton_schulz_steps"]
        if self.newton_schulz == "gram":
            return orthogonalise_by_gram(work, steps, coefficients, self.symmetric)
        return orthogonalise(work, steps, coefficients, precision.rounding, self.symmetric)

    def _apply(self, bank: Bank, updates: Tensor, work: Any, lr: float, decay: float) -> None:
        if work is not None:
            work.wait()
        self.decay(*bank.active_parameters(updates.to(bank.parameters[0].dtype)), lr, decay)
        if self.cap is not None:
            self._scale_back(bank, self.cap)

    def _scale_back(self, bank: Bank, cap: SpectralCap) -> None:
        """Multiply every matrix of the bank that was stepped by the factor that its owner finds."""
        busy, owned = bank.busy()
        factors = torch.ones(bank.share, device=bank.parameters[0].device)
        if busy:
            state = {"singular_vector": bank.state["singular_vector"][busy]}
            factors[busy] = cap.factors(torch.stack(owned), state)
            bank.state["singular_vector"][busy] = state["singular_vector"]
        every, work = bank.gather_any(factors)
        if work is not None:
            work.wait()
        for parameter, factor in zip(*bank.active_parameters(every), strict=True):
            parameter.mul_(factor.to(parameter.dtype))


def _look_ahead(gradients: Tensor, buffer: Tensor, momentum: float) -> Tensor:
    """g + momentum * buffer."""
    if gradients.dtype == torch.bfloat16:
        return gradients.add(buffer, alpha=momentum)  # rounded once, as published
    return (buffer * momentum).add_(gradients)  # product and sum: the same bits with and without fused multiply-add

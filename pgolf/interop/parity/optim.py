"""Optimisers, schedules and averages of the published scripts."""

import numpy as np
import torch
from torch import Tensor, nn

from pgolf.interop.parity.build import SMEAR_STOPS_AT_BOS
from pgolf.interop.parity.case import Array, Case, Comparison, Outcome, Unsupported
from pgolf.optim.averaging import ExponentialAverage
from pgolf.optim.muon import Muon, PrecisionName
from pgolf.optim.newton_schulz import POLAR_EXPRESS, STOCK, Coefficients, Rounding, orthogonalise

RELATIVE = 1e-5  # norm of the error over the norm of what is expected, where the published script ran in fp32
POLAR_SCRIPTS = frozenset({"1787", "1934", "1950", "2130", "2135"}) | SMEAR_STOPS_AT_BOS
"""PR 1787 and what was made from it."""
STOCK_SCRIPTS = frozenset({"1530", "1610", "1626", "1667", "1700", "1727", "1729", "1736", "1767", "1769"})
"""The other scripts with parameter banks."""
EARLY_SCRIPTS = frozenset({"root", "naive", "lora", "slide", "1394", "1413", "1493", "1514"})  # before banks
PRECISIONS: dict[tuple[bool, bool], PrecisionName] = {  # (bf16, early); early scripts always send updates in bf16
    (True, True): "bf16_iteration",
    (True, False): "bf16",
    (False, True): "bf16_update",
    (False, False): "fp32",
}


def newton_schulz(case: Case) -> Outcome:
    """`<variant>_<precision>_s<steps>_<i>` from `G<i>`."""
    variants: dict[str, tuple[Coefficients, Rounding]] = {
        "std1736": (STOCK, "published"),
        "polar1855": (POLAR_EXPRESS, "published"),
        "naive": (STOCK, "early"),
    }
    comparison = Comparison()
    for key, expected in case.arrays.items():
        parts = key.split("_")
        if len(parts) != 4:
            continue
        variant, precision, steps, index = parts
        if variant not in variants or precision not in ("fp32", "bf16"):
            raise Unsupported(f"no such iteration here: {key}")
        coefficients, rounding = variants[variant]
        given = torch.from_numpy(case.arrays[f"G{index}"])
        batch = given if given.ndim == 3 else given[None]
        batch, rounding = (batch.bfloat16(), rounding) if precision == "bf16" else (batch, "fused")
        got = orthogonalise(batch, int(steps.removeprefix("s")), coefficients, rounding).float().view(given.shape)
        _compare(comparison, key, got, expected, precision == "bf16")
    return comparison.outcome()


def muon(case: Case) -> Outcome:
    """Steps of a published Muon: parameters p<i> from gradients g<i>_t<t>, a matrix or a bank of matrices each."""
    meta = case.meta
    script, options = str(meta["script"]), dict(meta["ctor"])
    early, bf16 = script in EARLY_SCRIPTS, str(meta["precision"]).startswith("bf16")
    banks = [_bank(case.arrays[f"p{index}_init"]) for index in range(len(meta["shapes"]))]
    optimizer = Muon(
        [matrix for bank in banks for matrix in bank],
        lr=options.pop("lr"),
        momentum=options.pop("momentum"),
        weight_decay=options.pop("weight_decay", 0.0),
        nesterov=options.pop("nesterov", True),
        row_normalise=options.pop("row_normalize", False),
        newton_schulz_steps=newton_schulz_steps(options.pop("backend_steps", 5), script),
        coefficients="polar_express" if script in POLAR_SCRIPTS else "stock",
        precision=PRECISIONS[bf16, early],
    )
    if options:
        raise Unsupported(f"this Muon was made with {', '.join(options)}")
    comparison = Comparison()
    for step, (lr, momentum) in enumerate(zip(meta["lr_per_step"], meta["momentum_per_step"], strict=True)):
        optimizer.param_groups[0] |= {"lr": lr, "momentum": momentum}
        for index, bank in enumerate(banks):
            gradients = case.arrays.get(f"g{index}_t{step}")
            for row, matrix in enumerate(bank):
                matrix.grad = None if gradients is None else _matrices(gradients)[row].clone()
        optimizer.step()
        for index, bank in enumerate(banks):
            key = f"p{index}_after_t{step}"
            _compare(comparison, key, _stacked(bank), _matrices(case.arrays[key]).numpy(), bf16)
    _compare_momentum(comparison, case, optimizer, banks, bf16)
    return comparison.outcome()


def average(case: Case) -> Outcome:
    """ema[t] after t updates, the weights being x[t]."""
    holder = nn.Linear(1, 1, bias=False)
    weights, expected = case.arrays["x"], case.arrays["ema"]
    holder.weight = nn.Parameter(torch.from_numpy(weights[0].copy()))
    averaged = ExponentialAverage(holder, decay=case.meta["decay"])
    comparison = Comparison()
    for step, (weight, value) in enumerate(zip(weights, expected, strict=True)):
        if step:
            holder.weight.data = torch.from_numpy(weight.copy())
            averaged.update(holder)
        comparison.near(f"ema[{step}]", averaged.state_dict()["weight"].numpy(), value, RELATIVE)
    return comparison.outcome()


def newton_schulz_steps(steps: int, script: str) -> int:
    """Polar Express has five iterations; the published script stops after them whatever it was asked for."""
    return min(steps, len(POLAR_EXPRESS)) if script in POLAR_SCRIPTS else steps


def _matrices(array: Array) -> Tensor:
    """[rows, cols] or [n, rows, cols] -> [n, rows, cols]."""
    tensor = torch.from_numpy(array.copy())
    return tensor if tensor.ndim == 3 else tensor[None]


def _bank(array: Array) -> list[nn.Parameter]:
    return [nn.Parameter(matrix) for matrix in _matrices(array)]


def _stacked(bank: list[nn.Parameter]) -> Tensor:
    return torch.stack([matrix.detach() for matrix in bank])


def _compare_momentum(
    comparison: Comparison, case: Case, optimizer: Muon, banks: list[list[nn.Parameter]], bf16: bool
) -> None:
    states, position = optimizer.state_dict()["state"], 0
    for index, bank in enumerate(banks):
        buffers = torch.stack([states[position + row]["momentum_buffer"] for row in range(len(bank))])
        position += len(bank)
        if (expected := case.arrays.get(f"mom{index}_final")) is not None:
            _compare(comparison, f"mom{index}_final", buffers.float(), _matrices(expected).numpy(), bf16)


def _compare(comparison: Comparison, what: str, got: Tensor, expected: Array, bf16: bool) -> None:
    """fp32: relative to the norm. bf16: in units in the last place of the larger number, and not more than one."""
    if not bf16:
        comparison.near(what, got.numpy(), expected, RELATIVE)
        return
    larger = np.maximum(np.abs(got.numpy()), np.abs(expected)).astype(np.float64)
    ulp = np.exp2(np.floor(np.log2(np.maximum(larger, np.finfo(np.float32).tiny))) - 7)  # 8 bits of significand
    comparison.close(f"{what} in bf16 ulps", (got.double().numpy() - expected) / ulp, np.zeros(expected.shape), 1.0)

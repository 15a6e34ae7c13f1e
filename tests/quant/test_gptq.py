"""GPTQ against the published numbers, a brute-force reference and plain rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgolf.quant.gptq import gptq_quantise, row_scales, safe_steps


def problem(seed: int, rows: int, cols: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, cols] and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    mixing = torch.randn(cols, cols, generator=generator) * torch.rand(cols, generator=generator)
    inputs = torch.randn(tokens, cols, generator=generator) @ mixing
    return weight, inputs.t() @ inputs


def weighted_error(weight: Tensor, symbols: Tensor, scales: Tensor, hessian: Tensor) -> float:
    error = (weight - symbols.float() * scales.float()[:, None]).double()
    return float(((error @ hessian.double()) * error).sum())


def round_to_nearest(weight: Tensor, scales: Tensor, levels: int) -> Tensor:
    return torch.round(weight / safe_steps(scales)[:, None]).clamp(-levels, levels).to(torch.int8)


def brute_force(weight: Tensor, hessian: Tensor, clip_sigmas: float, bits: int) -> Tensor:
    """Column by column, inverting the remaining Hessian afresh each time, in float64."""
    levels = 2 ** (bits - 1) - 1
    scales = row_scales(weight, clip_sigmas=clip_sigmas, bits=bits).double()
    hessian = hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian)).double()
    order = sorted(range(len(hessian)), key=lambda j: -float(hessian[j, j]))
    weight = weight.double().clone()
    weight[:, dead] = 0
    symbols = torch.zeros(weight.shape, dtype=torch.int8)
    for position, column in enumerate(order):
        rest = order[position:]
        inverse = torch.linalg.inv(hessian[rest][:, rest])
        rounded = torch.round(weight[:, column] / scales).clamp(-levels, levels)
        symbols[:, column] = rounded.to(torch.int8)
        error = (weight[:, column] - rounded * scales) / inverse[0, 0]
        weight[:, rest] -= torch.outer(error, inverse[0])
    return symbols


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 5),
    st.integers(2, 12),
    st.integers(2, 8),
    st.integers(1, 7),
)
def test_equals_brute_force(seed: int, rows: int, cols: int, bits: int, block_size: int) -> None:
    weight, hessian = problem(seed, rows, cols, 30)
    symbols, _ = gptq_quantise(weight, hessian, clip_sigmas=3.0, bits=bits, block_size=block_size)
    expected = brute_force(weight, hessian, 3.0, bits)
    # float32 against float64: a value on a rounding edge may fall to the other side, and move
    # later ones.
    assert (symbols != expected).float().mean() <= 0.1
    assert (symbols.int() - expected.int()).abs().max() <= 2


def test_dead_inputs_become_zero() -> None:
    weight, hessian = problem(3, 4, 9, 40)
    hessian[:, 5] = 0
    hessian[5] = 0
    symbols, _ = gptq_quantise(weight, hessian, clip_sigmas=12.85, bits=6)
    assert not symbols[:, 5].any()
    assert symbols[:, :5].any()
    assert torch.equal(symbols, brute_force(weight, hessian, 12.85, 6))


def test_rows_of_zeros_stay_zero_and_do_not_disturb_others() -> None:
    weight, hessian = problem(4, 4, 9, 40)
    weight[2] = 0
    symbols, scales = gptq_quantise(weight, hessian, clip_sigmas=12.85, bits=6)
    alone, _ = gptq_quantise(weight[[0, 1, 3]], hessian, clip_sigmas=12.85, bits=6)
    assert not symbols[2].any() and scales[2] == 0
    assert torch.equal(symbols[[0, 1, 3]], alone)


def test_inputs_are_not_changed() -> None:
    weight, hessian = problem(5, 4, 9, 40)
    weight_before, hessian_before = weight.clone(), hessian.clone()
    first = gptq_quantise(weight, hessian, clip_sigmas=12.85, bits=6)
    second = gptq_quantise(weight, hessian, clip_sigmas=12.85, bits=6)
    assert torch.equal(weight, weight_before) and torch.equal(hessian, hessian_before)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_better_than_rounding_on_average(bits: int) -> None:
    levels = 2 ** (bits - 1) - 1
    gptq_total = plain_total = 0.0
    for seed in range(8):
        weight, hessian = problem(seed, 16, 32, 200)
        symbols, scales = gptq_quantise(weight, hessian, clip_sigmas=6.0, bits=bits)
        gptq_total += weighted_error(weight, symbols, scales, hessian)
        plain = round_to_nearest(weight, scales, levels)
        plain_total += weighted_error(weight, plain, scales, hessian)
    assert gptq_total < 0.8 * plain_total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, h: (w[0], h), "matrix"),
        (lambda w, h: (w, h[:3]), "Hessian has shape"),
        (lambda w, h: (w * float("nan"), h), "weight holds"),
        (lambda w, h: (w, h + float("inf")), "Hessian holds"),
        (lambda w, h: (w * 1e6, h), "too large"),
        (lambda w, h: (w, -h), "positive definite"),
    ],
)
def test_what_cannot_be_quantised(change, message: str) -> None:
    weight, hessian = change(*problem(6, 3, 5, 20))
    with pytest.raises(ValueError, match=message):
        gptq_quantise(weight, hessian, clip_sigmas=12.85, bits=6)

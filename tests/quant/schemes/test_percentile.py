"""The percentile search against a loop over rows, values and percentiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.quant.encoded import decode
from pgolf.quant.gptq import factorise, quantise_columns, to_nearest
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import PercentileGptq, PercentileRows


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between the sorted values."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def brute_force(weight: np.ndarray, shares: tuple[float, ...], levels: int, least: float) -> tuple[list, list]:
    best, best_error = None, math.inf
    for share in shares:
        symbols, scales, error = [], [], 0.0
        for row in weight.tolist():
            clip = max(quantile([abs(value) for value in row], share), least)
            scale = float(np.float16(clip / levels))
            ticks = [max(-levels, min(levels, round(value / scale))) for value in row]
            error += sum((tick * scale - value) ** 2 for tick, value in zip(ticks, row, strict=True))
            symbols.append(ticks)
            scales.append(scale)
        if error < best_error * (1 - 1e-6):
            best, best_error = (symbols, scales), error
    assert best is not None
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 40), st.integers(2, 8))
def test_equals_brute_force(seed: int, rows: int, cols: int, bits: int) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.standard_t(2, (rows, cols)).astype(np.float32)
    scheme = PercentileRows(bits=bits, percentiles=(0.8, 0.9, 1.0), least_clip=0.01)
    encoded = scheme.quantise(torch.tensor(weight))
    symbols, scales = brute_force(weight, (0.8, 0.9, 1.0), 2 ** (bits - 1) - 1, 0.01)
    # float32 against float64: a value on a rounding edge may fall to the other side
    assert (encoded.parts["symbols"] != np.array(symbols)).mean() <= 0.05
    assert encoded.parts["scales"].tolist() == pytest.approx(scales, rel=1e-3)


def test_the_least_clip_is_the_published_one() -> None:
    encoded = PercentileRows(bits=6).quantise(torch.full((2, 8), 0.25))
    assert encoded.parts["scales"].tolist() == [float(np.float16(1 / 31))] * 2


def test_around_gptq_the_percentile_with_the_least_error_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 24, generator=generator) ** 3
    inputs = torch.randn(100, 24, generator=generator)
    calibration = Calibration(inputs.t() @ inputs)
    shares = (0.8, 0.95, 1.0)
    errors, results = [], []
    for share in shares:
        scales = (torch.quantile(weight.abs(), share, dim=1) / 7).half()
        symbols = quantise_columns(weight, factorise(calibration.hessian), to_nearest(scales, 7))
        errors.append(float((symbols.float() * scales.float()[:, None] - weight).square().mean()))
        results.append(symbols)
    encoded = PercentileGptq(bits=4, percentiles=shares, least_clip=0.0).quantise(weight, calibration)
    assert np.array_equal(encoded.parts["symbols"], results[int(np.argmin(errors))].numpy())
    assert float((decode(encoded) - weight).square().mean()) == pytest.approx(min(errors))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bits=9"):
        PercentileRows(bits=9)
    for shares in ((), (0.5, 1.5), (0.0,)):
        with pytest.raises(ValueError, match="percentiles"):
            PercentileRows(bits=6, percentiles=shares)
    with pytest.raises(ValueError, match="least_clip"):
        PercentileRows(bits=6, least_clip=-1.0)
    with pytest.raises(ValueError, match="block_size"):
        PercentileGptq(bits=6, block_size=0)
    with pytest.raises(ValueError, match="Hessian"):
        PercentileGptq(bits=6).quantise(torch.ones(2, 2))

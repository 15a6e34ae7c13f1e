"""The baseline's export against a loop over rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.quant.encoded import decode
from pgolf.quant.schemes import Int8Baseline
from tests.quant.schemes.test_percentile import quantile


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 30), st.floats(0.01, 20))
def test_equals_brute_force(seed: int, rows: int, cols: int, size: float) -> None:
    weight = (np.random.default_rng(seed).standard_normal((rows, cols)) * size).astype(np.float32)
    encoded = Int8Baseline(quantile=0.9).quantise(torch.tensor(weight))
    for row, symbols, scale in zip(weight, encoded.parts["symbols"], encoded.parts["scales"], strict=True):
        clip = quantile(np.abs(row).tolist(), 0.9)
        step = max(clip / 127, 1 / 127)
        assert float(scale) == pytest.approx(step, rel=1e-3)
        expected = [round(max(-clip, min(clip, float(value))) / step) for value in row]
        assert np.abs(symbols - np.array(expected)).max() <= 1
        assert (symbols != np.array(expected)).mean() <= 0.1


def test_tensors_of_other_shapes_have_one_scale() -> None:
    weight = torch.linspace(-2, 2, 27).reshape(3, 3, 3)
    encoded = Int8Baseline(quantile=1.0).quantise(weight)
    assert encoded.parts["scales"].shape == () and encoded.parts["scales"].dtype == np.float32
    assert (decode(encoded) - weight).abs().max() <= 1 / 127 + 1e-6
    assert not decode(Int8Baseline().quantise(torch.zeros(4))).any()
    with pytest.raises(ValueError, match="quantile"):
        Int8Baseline(quantile=0.0)

"""The baseline's export against a loop over rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import UserError
from pgolf.quant.encoded import decode
from pgolf.quant.qat_rounding import rounded
from pgolf.quant.rules import Chooser, SmallTensors
from pgolf.quant.schemes import CoarseInt8, Half, Int8Baseline, SmallInt8
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


@settings(max_examples=30, deadline=None)
@given(shape=st.sampled_from([(7,), (3, 5), (1,), (2, 3, 4)]), seed=st.integers(0, 2**31))
def test_small_tensors_in_int8(shape: tuple[int, ...], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    scheme = SmallInt8()
    assert scheme.accepts(shape) and not scheme.row_wise
    found = decode(scheme.quantise(weight))
    largest = weight.abs().amax(dim=1, keepdim=True) if weight.ndim == 2 else weight.abs().max()
    step = (largest / 127).half().float()
    expected = torch.round(weight / step).clamp(-127, 127) * step
    assert torch.equal(found, expected) and torch.equal(rounded(scheme, weight), expected)
    assert not SmallInt8(min_elements=30).accepts(shape)


def test_small_tensors_of_zeros() -> None:
    assert not decode(SmallInt8().quantise(torch.zeros(4))).any()


def test_multiples_of_four() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 2
    fine, coarse = Int8Baseline().quantise(weight), CoarseInt8().quantise(weight)
    symbols = fine.parts["symbols"].astype(np.int32)
    expected = [[max(-127, min(127, round(value / 4) * 4)) for value in row] for row in symbols.tolist()]
    assert coarse.parts["symbols"].tolist() == expected and coarse.scheme == "int8 by 4"
    assert coarse.parts["symbols"].max() == 127 and np.array_equal(coarse.parts["scales"], fine.parts["scales"])
    assert np.array_equal(CoarseInt8(multiple=1).quantise(weight).parts["symbols"], fine.parts["symbols"])
    with pytest.raises(ValueError, match="multiple=0"):
        CoarseInt8(multiple=0)


def test_a_rule_about_small_tensors() -> None:
    rule = SmallTensors(below_elements=13, scheme=SmallInt8(), role="matrix")
    chooser = Chooser({"matrix": Int8Baseline(), "scalar": Half()}, {"small": rule}, 1)
    shapes: dict[str, tuple[int, ...]] = {"a": (3, 4), "b": (3, 5), "gain": (2,)}
    roles = {"a": "matrix", "b": "matrix", "gain": "scalar"}
    labels = [one.scheme.label for one in chooser.choose(shapes, roles, set()) if one.scheme]
    assert labels == ["int8 small", "int8 baseline", "float16"]
    with pytest.raises(UserError, match="matches no matrix tensor"):
        chooser.choose({"b": (3, 5)}, roles, set())
    with pytest.raises(ValueError, match="below_elements=0"):
        SmallTensors(below_elements=0, scheme=SmallInt8())

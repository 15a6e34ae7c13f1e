"""Schemes: bounds on the error, published gate rounding, refusals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.quant.encoded import Encoded, decode
from pgolf.quant.hessian import Calibration
from pgolf.quant.schemes import Float32, Gptq, Half, Int8Rows, encode_exact, gaussian_entropy

MATRICES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8),
    elements=st.floats(-1000, 1000, width=32),
)
TENSORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(-60_000, 60_000, width=32),
)


@settings(max_examples=60, deadline=None)
@given(MATRICES)
def test_int8_rows_error_is_at_most_half_a_step(array: np.ndarray) -> None:
    scheme, weight = Int8Rows(), torch.tensor(array)
    encoded = scheme.quantise(weight, None)
    scales = torch.tensor(encoded.parts["scales"]).float()[:, None]
    error = (decode(encoded) - weight).abs()
    # The float16 rounding of the scale may leave the largest value outside the outermost level.
    clipped = (weight.abs() - 127 * scales).clamp_min(0)
    assert (error <= 0.5 * scales * (1 + 1e-5) + clipped + 1e-12).all()
    assert encoded.parts["symbols"].dtype == np.int8
    assert abs(encoded.parts["symbols"].astype(int)).max() <= 127


@settings(max_examples=40, deadline=None)
@given(TENSORS)
def test_plain_schemes(array: np.ndarray) -> None:
    weight = torch.tensor(array)
    assert torch.equal(decode(Float32().quantise(weight)), weight)
    half = decode(Half().quantise(weight))
    assert torch.equal(half, weight.half()) and half.shape == weight.shape


def test_float32_keeps_bfloat16_exactly() -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    scheme = Float32()
    assert torch.equal(decode(scheme.quantise(weight)).bfloat16(), weight)


def test_integers_are_exact() -> None:
    for tensor in (torch.tensor([2**62, -1]), torch.tensor([True, False]), torch.tensor(7)):
        assert torch.equal(decode(encode_exact(tensor)), tensor)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_gptq_symbols_stay_in_range(seed: int, bits: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 6, generator=generator)
    inputs = torch.randn(20, 6, generator=generator)
    scheme = Gptq(bits=bits, clip_sigmas=2.0)
    encoded = scheme.quantise(weight, Calibration(inputs.t() @ inputs))
    assert abs(encoded.parts["symbols"].astype(int)).max() <= 2 ** (bits - 1) - 1
    assert decode(encoded).shape == weight.shape


def test_gptq_with_uncorrelated_inputs_is_plain_rounding() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    encoded = Gptq(bits=6, clip_sigmas=12.85).quantise(weight, Calibration(torch.eye(16)))
    scales = torch.tensor(encoded.parts["scales"]).float()[:, None]
    assert ((decode(encoded) - weight).abs() <= 0.5 * scales * (1 + 1e-5)).all()


def test_refusals() -> None:
    for bits in (1, 9):
        with pytest.raises(ValueError, match="2 to 8"):
            Gptq(bits=bits, clip_sigmas=1.0)
    for clip in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="clip_sigmas"):
            Gptq(bits=6, clip_sigmas=clip)
    with pytest.raises(ValueError, match="block_size"):
        Gptq(bits=6, clip_sigmas=1.0, block_size=0)
    with pytest.raises(ValueError, match="min_elements"):
        Int8Rows(min_elements=-1)
    with pytest.raises(ValueError, match="Hessian"):
        Gptq(bits=6, clip_sigmas=1.0).quantise(torch.ones(2, 2), None)
    with pytest.raises(ValueError, match="float16"):
        Half().quantise(torch.tensor([1e6]), None)
    for scheme in (Half(), Int8Rows()):
        with pytest.raises(ValueError, match="finite"):
            scheme.quantise(torch.tensor([[math.inf]]), None)
    with pytest.raises(ValueError, match="too large"):
        Int8Rows().quantise(torch.full((1, 2), 1e8), None)


def test_decode_refuses_parts_that_do_not_fit() -> None:
    symbols, scales = np.zeros((2, 3), np.int8), np.ones(2, np.float16)
    with pytest.raises(ValueError, match="decoder"):
        decode(Encoded("trellis", "x", (2, 3), {}))
    with pytest.raises(ValueError, match="fit"):
        decode(Encoded("rows", "x", (2, 3), {"symbols": symbols}))
    with pytest.raises(ValueError, match="fit"):
        decode(Encoded("rows", "x", (2, 3), {"symbols": symbols, "scales": np.ones(4, np.float16)}))
    with pytest.raises(ValueError, match="shape"):
        decode(Encoded("rows", "x", (3, 2), {"symbols": symbols, "scales": scales}))


@pytest.mark.parametrize(("clip", "bits"), [(12.85, 6), (15.0, 7), (3.0, 3), (1.0, 2)])
def test_entropy_agrees_with_a_sample(clip: float, bits: int) -> None:
    levels = 2 ** (bits - 1) - 1
    sample = np.random.default_rng(0).standard_normal(400_000)
    symbols = np.clip(np.round(sample * levels / clip), -levels, levels)
    chances = np.unique(symbols, return_counts=True)[1] / len(sample)
    measured = -(chances * np.log2(chances)).sum()
    assert gaussian_entropy(clip / levels, levels) == pytest.approx(measured, abs=0.01)

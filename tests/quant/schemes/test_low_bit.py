"""Ternary and binary weights: packing is exact, weights on the grid come back to the last bit."""

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.quant.encoded import decode, unpack_base3, unpack_bits
from pgolf.quant.schemes import Binary, Ternary
from pgolf.quant.schemes.low_bit import pack_base3, pack_bits

TRITS = hnp.arrays(np.int8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.integers(-1, 1))
PACKINGS = ("base3", "bits", "smaller", "symbols")


@settings(max_examples=60, deadline=None)
@given(TRITS)
def test_base3_is_exact_and_dense(symbols: np.ndarray) -> None:
    packed = pack_base3(symbols)
    assert packed.dtype == np.uint8 and len(packed) == -(-symbols.size // 5)
    assert packed.max(initial=0) <= 242
    assert np.array_equal(unpack_base3(packed, symbols.size), symbols.reshape(-1))


def test_base3_is_the_published_layout() -> None:
    assert pack_base3(np.array([1, -1, 0, 0, -1, 1], np.int8)).tolist() == [2 + 0 + 9 + 27 + 0, 2 + 3 + 9 + 27 + 81]
    assert pack_base3(np.zeros(5, np.int8)).tolist() == [121]


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.bool_, st.integers(1, 40)))
def test_bits_are_exact(bits: np.ndarray) -> None:
    assert np.array_equal(unpack_bits(pack_bits(bits), len(bits)).astype(bool), bits)


@settings(max_examples=60, deadline=None)
@given(TRITS, st.floats(0.125, 1e6, width=32), st.sampled_from(PACKINGS), st.sampled_from([0, 1, 7, 128]))
def test_ternary_weights_come_back_to_the_last_bit(
    symbols: np.ndarray, scale: float, packing: Literal["base3", "bits", "smaller", "symbols"], group_size: int
) -> None:
    weight = torch.tensor(symbols).float() * scale
    encoded = Ternary(group_size=group_size, packing=packing, scale="float32").quantise(weight)
    assert torch.equal(decode(encoded), weight)


@settings(max_examples=30, deadline=None)
@given(TRITS, st.floats(0.125, 1e6, width=32))
def test_binary_weights_come_back_to_the_last_bit(symbols: np.ndarray, scale: float) -> None:
    weight = torch.where(torch.tensor(symbols) < 0, -1.0, 1.0) * scale
    assert torch.equal(decode(Binary(scale="float32").quantise(weight)), weight)


@pytest.mark.parametrize("keep_mean", [True, False])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_brute_force(keep_mean: bool, threshold: float) -> None:
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    scheme = Ternary(group_size=8, threshold=threshold, keep_mean=keep_mean, scale="float32")
    flat, expected = weight.reshape(-1).tolist(), []
    for start in range(0, len(flat), 8):
        group = flat[start : start + 8]
        mean = sum(map(abs, group)) / len(group)
        kept = [value for value in group if abs(value) > threshold * mean]
        scale = mean * len(group) / len(kept) if keep_mean else mean
        expected += [(value > 0) * scale - (value < 0) * scale if value in kept else 0.0 for value in group]
    decoded = decode(scheme.quantise(weight))
    assert decoded.reshape(-1).tolist() == pytest.approx(expected, rel=1e-6)
    if keep_mean:
        assert decoded.abs().sum() == pytest.approx(float(weight.abs().sum()), rel=1e-5)


def test_all_packings_decode_alike() -> None:
    weight = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    tensors = [decode(Ternary(group_size=16, packing=packing).quantise(weight)) for packing in PACKINGS]
    assert all(torch.equal(tensors[0], one) for one in tensors[1:])
    assert not Ternary().quantise(torch.zeros(3)).parts["scales"].any()


def test_the_packing_that_lzma_makes_less_of() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = Ternary(packing="smaller").quantise(torch.randn(64, 128, generator=generator))
    assert "base3" in dense.parts  # few zeros: 1.6 bits against 1.69
    sparse = torch.zeros(64, 128)
    sparse[:, ::16] = torch.randn(64, 8, generator=generator).sign()
    assert "mask" in Ternary(packing="smaller").quantise(sparse).parts


def test_refusals() -> None:
    with pytest.raises(ValueError, match="group_size"):
        Ternary(group_size=-1)
    with pytest.raises(ValueError, match="threshold"):
        Ternary(threshold=1.0)
    with pytest.raises(ValueError, match="scale=float32"):
        Ternary().quantise(torch.full((4,), 1e6))
    with pytest.raises(ValueError, match="finite"):
        Binary().quantise(torch.tensor([float("nan")]))

"""Float formats: rounding to the nearest value of the format, and nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pgolf.quant.encoded import decode
from pgolf.quant.schemes import BFloat16, Float8

TENSORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    elements=st.floats(-448, 448, width=32),
)
FLOAT8 = sorted(
    {
        sign * (mantissa / 8 if exponent == 0 else 1 + mantissa / 8) * 2.0 ** (max(exponent, 1) - 7)
        for sign in (-1, 1)
        for exponent in range(16)
        for mantissa in range(8)
        if (exponent, mantissa) != (15, 7)  # not a number
    }
)


@settings(max_examples=60, deadline=None)
@given(TENSORS)
def test_bfloat16_is_the_tensor_rounded(array: np.ndarray) -> None:
    weight = torch.tensor(array)
    decoded = decode(BFloat16().quantise(weight))
    assert decoded.dtype == torch.bfloat16 and torch.equal(decoded, weight.bfloat16())


@settings(max_examples=60, deadline=None)
@given(TENSORS)
def test_float8_takes_the_nearest_of_all_its_values(array: np.ndarray) -> None:
    decoded = decode(Float8().quantise(torch.tensor(array)))
    assert decoded.shape == array.shape
    for value, rounded in zip(array.reshape(-1).tolist(), decoded.reshape(-1).tolist(), strict=True):
        assert rounded in FLOAT8
        assert abs(rounded - value) == min(abs(candidate - value) for candidate in FLOAT8)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="448"):
        Float8().quantise(torch.tensor([449.0]))
    for scheme in (Float8(), BFloat16()):
        with pytest.raises(ValueError, match="finite"):
            scheme.quantise(torch.tensor([float("inf")]))
    with pytest.raises(ValueError, match="finite"):
        BFloat16().quantise(torch.tensor([3.4e38]))

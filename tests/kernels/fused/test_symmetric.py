"""Symmetric products: any shape, symmetric to the last bit, and the iteration that is made of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.optim.newton_schulz import orthogonalise, orthogonalise_by_gram
from tests.kernels.fused.cases import disagreements, module, randn


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 3),
    rows=st.integers(1, 75),
    columns=st.integers(1, 75),
    base=st.booleans(),
    scale=st.sampled_from([1.0, -2.0]),
)
def test_any_shape(count, rows, columns, base, scale):
    x = randn(count, rows, columns)
    other = randn(count, rows, rows, seed=1)
    given = ([x, other + other.mT], 0.7) if base else ([x], None, 0.0)
    assert not disagreements(module("symmetric"), *given, scale)


def test_what_is_mirrored_is_the_same_to_the_last_bit():
    product = module("symmetric").fused(randn(2, 70, 33))
    assert torch.equal(product, product.mT)


@pytest.mark.parametrize("function", [orthogonalise, orthogonalise_by_gram])
@pytest.mark.parametrize("shape", [(3, 40, 40), (2, 40, 90), (2, 90, 40), (1, 300, 20)])
def test_newton_schulz_made_of_them_is_the_iteration(function, shape):
    matrices = randn(*shape)
    expected = function(matrices, 5)
    got = function(matrices, 5, symmetric=module("symmetric").fused)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

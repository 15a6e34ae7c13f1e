"""Fused RMSNorm, rotary embedding and gain: any shape, and what the attention of a model computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.norm import EPSILON, rms_norm
from pgolf.model.rope import Rotary
from tests.kernels.fused.cases import DEVICE, disagreements, module, randn


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 5),
    half=st.integers(2, 12),
    beyond=st.integers(0, 9),
    with_gain=st.booleans(),
)
def test_any_shape_with_part_of_the_head_rotated(rows, tokens, heads, half, beyond, with_gain):
    angles = randn(tokens, half, seed=1)
    gain = randn(heads, seed=2) if with_gain else None
    inputs = [randn(rows, tokens, heads, 2 * half + beyond), angles.cos(), angles.sin(), gain]

    def kernel(x, gain=None):
        return module("norm_rotary").fused(x, inputs[1], inputs[2], gain)

    def reference(x, gain=None):
        return module("norm_rotary").reference(x, inputs[1].double(), inputs[2].double(), gain)

    assert not disagreements(
        Pair(kernel, reference), [x for x in (inputs[0], gain) if x is not None], tolerance=3e-5, floor=1.0
    )


class Pair:
    def __init__(self, fused, reference):
        self.fused, self.reference = fused, reference


@pytest.mark.parametrize("dims", [16, 24])
def test_it_is_what_attention_computes(dims):
    rope = Rotary(dims=dims, base=1e4)
    q, gain = randn(2, 11, 4, 24), randn(4, seed=1)
    expected = rope(rms_norm(q)) * gain[:, None]
    got = module("norm_rotary").fused(q, *rope.tables(11, DEVICE), gain)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_its_epsilon_is_that_of_the_model():
    assert module("norm_rotary").EPSILON == module("smear_norm").EPSILON == EPSILON
    zeros = torch.zeros(1, 2, 1, 4, device=DEVICE)
    assert not module("norm_rotary").fused(zeros, zeros[0, :, 0, :1], zeros[0, :, 0, :1], None).any()


def test_the_gain_s_gradient_is_the_same_each_time():
    x, tables, gain = randn(3, 40, 4, 8), randn(40, 2, seed=1), randn(4, seed=2)
    found = []
    for _ in range(2):
        leaf = gain.clone().requires_grad_()
        module("norm_rotary").fused(x, tables.cos(), tables.sin(), leaf).square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)

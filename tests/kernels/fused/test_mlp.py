"""The fused MLP: any shape, the published derivative, and what it writes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.fused.cases import DEVICE, disagreements, module, randn

SIDE = st.integers(1, 70)


@settings(max_examples=8, deadline=None)
@given(rows=SIDE, dim=SIDE, hidden=SIDE, slope=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_any_shape(rows, dim, hidden, slope):
    inputs = [randn(rows, dim), randn(hidden, dim, seed=1), randn(dim, hidden, seed=2)]
    assert not disagreements(module("mlp"), inputs, slope)


@pytest.mark.parametrize("shape", [(0,), (2, 3), (1, 2, 3, 4)])
def test_leading_dimensions_are_kept(shape):
    out = module("mlp").fused(randn(*shape, 5), randn(7, 5), randn(5, 7), 0.5)
    assert out.shape == (*shape, 5)


def test_the_derivative_is_the_published_one():
    """2 h above zero and 0.5 h below with slope 0.5, times what comes from behind."""
    h, down, gradient = randn(33, 40, seed=1), randn(8, 40, seed=2), randn(33, 8, seed=3)
    expected = (gradient.double() @ down.double()) * torch.where(h > 0, 2.0 * h, 0.5 * h).double()
    got = module("mlp").slopes(gradient, down, h, 0.5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_for_the_backward_is_rounded_as_by_the_plain_operations():
    """h in the dtype of x, and p of that rounded h: the same bits as separate operations on the same h."""
    x, up, down = randn(20, 16).half(), randn(24, 16, seed=1).half(), randn(16, 24, seed=2).half()
    _, h, p = module("mlp").forward(x, up, down, 0.3)
    assert h.dtype == p.dtype == torch.float16
    assert torch.equal(p, torch.nn.functional.leaky_relu(h, 0.3).square())


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_has_no_gradient_and_the_others_keep_theirs(frozen):
    inputs = [randn(9, 5), randn(7, 5, seed=1), randn(5, 7, seed=2)]
    every = [one.clone().requires_grad_() for one in inputs]
    some = [one.clone().requires_grad_(index != frozen) for index, one in enumerate(inputs)]
    for leaves in (every, some):
        module("mlp").fused(*leaves, 0.5).sum().backward()
    assert some[frozen].grad is None
    assert all(torch.equal(a.grad, b.grad) for i, (a, b) in enumerate(zip(every, some, strict=True)) if i != frozen)


class Shapes(TorchDispatchMode):
    """The shape of whatever an operation gives."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.seen.append((function.overloadpacket.__name__, tuple(getattr(made, "shape", ()))))
        return made


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU's backward runs in a thread of its own, without the mode")
def test_the_backward_makes_no_zeros_for_what_has_no_gradient():
    out = module("mlp").fused(randn(9, 5).requires_grad_(), randn(7, 5, seed=1), randn(5, 7, seed=2), 0.5)
    with Shapes() as shapes:
        out.sum().backward()
    assert ("mlp_slopes", (9, 7)) in shapes.seen
    assert [name for name, shape in shapes.seen if shape == (9, 7)] == ["mlp_slopes"]

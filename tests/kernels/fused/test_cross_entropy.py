"""The fused cross entropy: any shape, large scores, weights of tokens and z-loss by the two values of each row."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.fused.cases import DEVICE, disagreements, module, randn


def targets_for(rows, columns):
    return torch.randint(0, columns, (rows,), generator=torch.Generator().manual_seed(rows)).to(DEVICE)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.sampled_from([1, 2, 3, 64, 1000, 1023, 1024, 1025, 2500]),
    cap=st.sampled_from([None, 0.5, 15.0, 30.0]),
    size=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_any_shape_cap_and_size_of_the_scores(rows, columns, cap, size):
    # a cap leaves as many places behind the point to a small score as to a large one
    assert not disagreements(
        module("cross_entropy"), [randn(rows, columns, scale=size)], targets_for(rows, columns), cap, floor=1.0
    )


def test_one_number_of_the_vocabulary_costs_nothing():
    losses, lse = module("cross_entropy").fused(randn(3, 1), targets_for(3, 1), 30.0)
    assert torch.equal(losses, torch.zeros_like(losses)) and lse.shape == (3,)


def test_scores_far_beyond_the_cap_stay_finite():
    scores = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], device=DEVICE)
    losses, lse = module("cross_entropy").fused(scores, torch.tensor([1, 2], device=DEVICE), 30.0)
    assert losses.tolist() == pytest.approx([60.0, 0.0], abs=1e-4)
    assert lse.tolist() == pytest.approx([30.0, 30.0], abs=1e-4)


def test_weights_of_tokens_and_z_loss_are_made_of_the_two_values():
    """sum(w (CE + z lse^2)) / sum(w), and its gradient, written out in fp64."""
    scores, targets = randn(6, 40, scale=20.0), targets_for(6, 40)
    weights, z = torch.arange(6.0, device=DEVICE) + 0.5, 1e-2

    def loss(function, given):
        losses, lse = function(given, targets, 30.0)
        return (weights.to(losses) * (losses + z * lse.square())).sum() / weights.sum()

    def written_out(given):
        capped = 30.0 * torch.tanh(given / 30.0)
        each = torch.nn.functional.cross_entropy(capped, targets, reduction="none")
        return (weights * (each + z * capped.logsumexp(-1).square())).sum() / weights.sum()

    leaf, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    got, expected = loss(module("cross_entropy").fused, leaf), written_out(exact)
    got.backward(), expected.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_written_in_the_dtype_of_the_scores():
    scores = randn(4, 100).bfloat16().requires_grad_()
    losses, lse = module("cross_entropy").fused(scores, targets_for(4, 100), 30.0)
    losses.mean().backward()
    assert (losses.dtype, lse.dtype, scores.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)

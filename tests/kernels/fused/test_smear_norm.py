"""Fused smear and RMSNorm: any shape, no token beyond its row, and what the model computes."""

from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.norm import rms_norm
from pgolf.model.smear import SmearGate
from tests.kernels.fused.cases import DEVICE, disagreements, module, randn


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 3), tokens=st.integers(1, 4), dim=st.integers(3, 140))
def test_any_shape(rows, tokens, dim):
    assert not disagreements(
        module("smear_norm"), [randn(rows, tokens, dim), randn(rows, tokens, seed=1)], tolerance=3e-5, floor=1.0
    )


def test_the_first_token_of_a_row_reads_nothing_whatever_its_gate():
    """Neither what lies before it in memory nor a number that is none."""
    embedded, gate = randn(3, 4, 8), randn(3, 4, seed=1)
    embedded[0, -1] = float("nan")
    got = module("smear_norm").fused(embedded, gate)
    torch.testing.assert_close(got[1:, 0], rms_norm(embedded[1:, 0]), rtol=1e-6, atol=1e-6)
    leaf = embedded[1:].clone().requires_grad_(), gate[1:].clone().requires_grad_()
    module("smear_norm").fused(*leaf).square().sum().backward()
    assert not leaf[1].grad[:, 0].any()


def test_it_is_what_the_model_computes():
    smear = partial(SmearGate, width=6, bos_id=1)(16).to(DEVICE)
    with torch.no_grad():
        smear.smear_gate.weight.copy_(randn(1, 6, seed=4))
        smear.smear_lambda.fill_(0.7)
    embedded, tokens = randn(2, 9, 16), torch.randint(0, 3, (2, 9)).to(DEVICE)
    expected = rms_norm(smear(embedded, tokens))
    got = module("smear_norm").fused(embedded, smear.gates(embedded, tokens))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_stream_may_begin_wider_than_the_embedding():
    """As under autocast: what comes out is fp32, and gradients are in the dtypes of what came in."""
    embedded, gate = randn(2, 3, 8).bfloat16().requires_grad_(), randn(2, 3, seed=1).bfloat16().requires_grad_()
    out = module("smear_norm").forward(embedded, gate, torch.float32)
    out.square().sum().backward()
    exact = module("smear_norm").reference(embedded.detach().float(), gate.detach().float())
    assert (out.dtype, embedded.grad.dtype, gate.grad.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(out, exact, rtol=1e-6, atol=1e-6)

"""Dispatch to the attention libraries, against fakes that record what they are given."""

import sys
import types

import pytest
import torch

from pgolf.errors import UserError
from pgolf.kernels import attend, flash
from pgolf.kernels.reference import reference
from tests.kernels.cases import HEAD_DIM, HEADS, KV_HEADS, inputs, packed, with_gradients

BOUNDARIES = [0, 37, 100, 150, 150]
TUPLES = {"flash_attn_interface": True, "flash_attn": False}  # whether the library returns (out, statistics)


class Library:
    """Computes with the reference and keeps the arguments of every call."""

    def __init__(self, tuples):
        self.tuples, self.calls = tuples, []

    def answer(self, out):
        return (out, torch.zeros(1)) if self.tuples else out

    def flash_attn_func(self, q, k, v, *, softmax_scale, causal):
        self.calls.append({"q": q, "k": k, "softmax_scale": softmax_scale, "causal": causal})
        return self.answer(reference(q, k, v, None))

    def flash_attn_varlen_func(self, q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal):
        self.calls.append({"q": q, "k": k, "cu_seqlens": (cu_q, cu_k), "max_seqlen": (max_q, max_k)})
        self.calls[-1].update(softmax_scale=softmax_scale, causal=causal)
        return self.answer(reference(q[None], k[None], v[None], packed(cu_q.tolist()))[0])


@pytest.fixture(params=["flash3", "flash2"])
def installed(request, monkeypatch):
    module = {"flash3": "flash_attn_interface", "flash2": "flash_attn"}[request.param]
    library = Library(TUPLES[module])
    fake = types.ModuleType(module)
    fake.flash_attn_func, fake.flash_attn_varlen_func = library.flash_attn_func, library.flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, module, fake)
    return request.param, library


def test_a_library_that_works_in_bf16_is_picked_first(installed):
    name, _ = installed
    assert attend.probe(name, torch.device("cpu"), torch.bfloat16) == ""
    assert attend.select("auto", torch.device("cpu"), torch.bfloat16)[0] == name


def test_packed_rows_hand_over_boundaries_lengths_and_scale(installed):
    name, library = installed
    tensors = inputs(150, dtype=torch.bfloat16)
    packing = packed(BOUNDARIES, max_seqlen=64)
    got = with_gradients(attend.BACKENDS[name](), tensors, packing)
    (call,) = library.calls
    assert [(x.dtype, x.tolist()) for x in call["cu_seqlens"]] == [(torch.int32, BOUNDARIES)] * 2
    assert call["max_seqlen"] == (64, 64)  # the constant, not the longest segment of this row
    assert call["causal"] is True and call["softmax_scale"] == pytest.approx(HEAD_DIM**-0.5)
    assert call["q"].shape == (150, HEADS, HEAD_DIM) and call["k"].shape == (150, KV_HEADS, HEAD_DIM)
    for a, b in zip(got, with_gradients(reference, tensors, packing), strict=True):
        torch.testing.assert_close(a, b)


def test_dense_rows_use_the_dense_function(installed):
    name, library = installed
    tensors = inputs(20, rows=3, dtype=torch.bfloat16)
    got = attend.BACKENDS[name]()(*tensors, None)
    (call,) = library.calls
    assert call["q"].shape == (3, 20, HEADS, HEAD_DIM) and "cu_seqlens" not in call
    assert call["causal"] is True and call["softmax_scale"] == pytest.approx(HEAD_DIM**-0.5)
    torch.testing.assert_close(got, reference(*tensors, None))


def test_autocast_decides_the_dtype_and_fp32_is_refused_in_a_sentence(installed):
    name, library = installed
    attention = attend.BACKENDS[name]()
    with pytest.raises(UserError, match=f"{name} computes in bfloat16 or float16, not in float32"):
        attention(*inputs(20), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(*inputs(20), None).dtype == torch.bfloat16
    assert library.calls[-1]["q"].dtype == torch.bfloat16


def since_210(q, k, v, cu_q, cu_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and q.shape[1] == k.shape[1]
    return reference(q[None], k[None], v[None], packed(cu_q.tolist()))[0]


def since_211(q, k, v, cu_q, cu_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)):
    assert window_size == (-1, 0) and q.shape[1] == k.shape[1]
    return reference(q[None], k[None], v[None], packed(cu_q.tolist()))[0]


def since_212(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False, seqused_k=None):
    assert window_size == (-1, 0) and enable_gqa and k.shape[1] == KV_HEADS
    return reference(q[None], k[None], v[None], packed(cu_q.tolist()))[0]


@pytest.mark.parametrize("function", [since_210, since_211, since_212])
def test_every_signature_of_torch_varlen_is_served(monkeypatch, function):
    module = types.ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = function
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    attention = flash.torch_varlen()
    for tensors, packing in (
        (inputs(150, dtype=torch.bfloat16), packed(BOUNDARIES)),
        (inputs(20, rows=3, dtype=torch.bfloat16), None),
    ):
        torch.testing.assert_close(attention(*tensors, packing), reference(*tensors, packing))


def test_the_installed_torch_has_a_signature_that_is_served():
    """What varlen refuses on a CPU is the device, not the arguments."""
    pytest.importorskip("torch.nn.attention.varlen", reason="it came with torch 2.10")
    with pytest.raises(NotImplementedError, match="CPU|backend"):
        flash.torch_varlen()(*inputs(150, dtype=torch.bfloat16, grad=False), packed(BOUNDARIES))

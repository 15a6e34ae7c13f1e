"""Flex attention: the block mask is exact, and the uncompiled operation gives the reference's answer."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as library

from pgolf.kernels import flex as module
from pgolf.kernels.flex import BLOCK, block_mask, flex
from pgolf.kernels.reference import reference
from tests.kernels.cases import LAYOUTS, inputs, packed, with_gradients


def visible_pairs(packing, tokens):
    documents = packing.document_ids(tokens)
    return torch.ones(tokens, tokens, dtype=torch.bool).tril() & (documents[:, None] == documents[None, :])


def by_blocks(pairs):
    """(blocks with some visible pair, blocks with all pairs visible), bool [n, n]."""
    count = -(-len(pairs) // BLOCK)
    some, every = torch.zeros(count, count, dtype=torch.bool), torch.zeros(count, count, dtype=torch.bool)
    for i, j in itertools.product(range(count), range(count)):
        part = pairs[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        some[i, j], every[i, j] = part.any(), part.all()
    return some, every


def listed(count, indices):
    out = torch.zeros(indices.shape[-1], indices.shape[-1], dtype=torch.bool)
    for row, number in enumerate(count[0, 0].tolist()):
        out[row, indices[0, 0, row, :number].long()] = True
    return out


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 400), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) > 0))
def test_the_block_mask_names_exactly_the_blocks_with_visible_pairs(lengths):
    boundaries = [0, *itertools.accumulate(lengths)]
    tokens = boundaries[-1]
    mask = block_mask(torch.empty(1, tokens, 1, 1), packed(boundaries))
    partly = listed(mask.kv_num_blocks, mask.kv_indices)
    whole = listed(mask.full_kv_num_blocks, mask.full_kv_indices)
    some, every = by_blocks(visible_pairs(packed(boundaries), tokens))
    assert torch.equal(partly | whole, some)
    assert not (partly & whole).any()
    assert not (whole & ~every).any()  # a block that is skipped by the mask function has no hidden pair


@pytest.fixture
def eager(monkeypatch):
    """The operation without its compiler: it has gradients on a CPU, so the check that refuses them is passed by."""
    monkeypatch.setattr(module, "_compiled", lambda: library.flex_attention)
    monkeypatch.setattr(library, "_validate_device", lambda q, k, v: None)
    return flex()


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_flex_agrees_with_the_reference_in_values_and_gradients(eager, layout):
    tensors = inputs(150)
    packing = packed(LAYOUTS[layout]) if layout else None
    for a, b in zip(with_gradients(eager, tensors, packing), with_gradients(reference, tensors, packing), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_flex_inside_a_compiled_graph_has_no_break_and_the_same_answer():
    torch.compiler.reset()
    compiled = torch.compile(flex(), fullgraph=True, backend="aot_eager")
    tensors = inputs(300, grad=False)
    for boundaries in ([0, 300, 300], [0, 17, 300]):
        got = compiled(*tensors, packed(boundaries, 300))
        torch.testing.assert_close(got, reference(*tensors, packed(boundaries)), rtol=1e-5, atol=1e-5)

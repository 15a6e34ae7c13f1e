"""sdpa over packed rows: right answers, no mask over the row, and the same inside a compiled graph."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from pgolf.kernels.documents import _document_backward, sdpa
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import reference
from tests.kernels.cases import LAYOUTS, inputs, packed, with_gradients

TOLERANCE = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}


def brute_force(q, k, v, boundaries):
    """Softmax attention in fp64, one query at a time."""
    groups = q.shape[2] // k.shape[2]
    out = torch.zeros_like(q, dtype=torch.float64)
    for start, end in itertools.pairwise(boundaries):
        for t, h in itertools.product(range(start, end), range(q.shape[2])):
            keys, values = (x[0, start : t + 1, h // groups].double() for x in (k, v))
            weights = torch.softmax(keys @ q[0, t, h].double() / q.shape[-1] ** 0.5, dim=0)
            out[0, t, h] = weights @ values
    return out


documents = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda lengths: sum(lengths) > 0)


@settings(max_examples=25, deadline=None)
@given(lengths=documents, seed=st.integers(0, 99))
def test_reference_and_sdpa_equal_brute_force(lengths, seed):
    boundaries = [0, *itertools.accumulate(lengths)]
    tensors = inputs(boundaries[-1], seed=seed, grad=False)
    expected = brute_force(*tensors, boundaries)
    for attention in (reference, sdpa):
        got = attention(*tensors, packed(boundaries))
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_sdpa_agrees_with_the_reference_in_values_and_gradients(layout, dtype):
    tensors, packing = inputs(150, dtype=dtype), packed(LAYOUTS[layout])
    for a, b in zip(with_gradients(sdpa, tensors, packing), with_gradients(reference, tensors, packing), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_dense_rows_agree_with_the_reference(dtype):
    tensors = inputs(50, rows=3, dtype=dtype)
    for a, b in zip(with_gradients(sdpa, tensors, None), with_gradients(reference, tensors, None), strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE[dtype])


def test_a_packing_of_another_row_is_refused():
    with pytest.raises(ValueError, match=r"one row of 40 tokens, q has the shape \(1, 50, 4, 16\)"):
        sdpa(*inputs(50), packed([0, 40]))
    with pytest.raises(ValueError, match="one row of 50 tokens"):
        sdpa(*inputs(50, rows=2), packed([0, 50]))


def largest_allocation(action):
    """Bytes of the largest block that `action` asks for, inside kernels too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = profiler.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("boundaries", [[0, 4096], [0, 2048, 4096], [0, 3000, *range(3050, 4096, 50), 4096]])
def test_no_block_of_memory_grows_with_the_square_of_the_row(boundaries):
    tensors, packing = inputs(4096), packed(boundaries)
    mask = largest_allocation(lambda: torch.ones(4096, 4096, dtype=torch.bool))
    assert mask == 4096**2
    assert largest_allocation(lambda: with_gradients(sdpa, tensors, packing)) <= 4096**2 / 4


def test_compiled_backward_allocates_blocks_of_queries_only():
    tensors = [x.detach()[0] for x in inputs(4096)]
    out = sdpa(*(x[None] for x in tensors), None)[0]
    largest = largest_allocation(lambda: _document_backward(torch.ones_like(out), out, *tensors))
    assert largest <= 4096 * 256 * 4 * 4  # keys, queries of a block, heads, bytes: a sixteenth of T x T


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
def test_the_written_out_backward_equals_autograd(length, dtype):
    tensors = inputs(length, dtype=dtype)
    out, *expected = with_gradients(sdpa, tensors, None)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = _document_backward(slope[0], out[0], *(x.detach()[0] for x in tensors))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b[0], **TOLERANCE[dtype])


def test_the_operation_keeps_the_rules_of_the_library():
    """Schema, fake kernel and gradient registration, as torch itself checks them."""
    q, k, v = inputs(40)
    torch.library.opcheck(torch.ops.pgolf.attend_documents.default, (q, k, v, packed([0, 7, 40]).boundaries))


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_a_compiled_graph_has_no_break_and_the_same_answer(layout):
    torch.compiler.reset()
    packing = packed(LAYOUTS[layout]) if layout else None
    compiled = torch.compile(
        lambda q, k, v, packing: sdpa(q * 2, k, v, packing) + 1, fullgraph=True, backend="aot_eager"
    )
    tensors = inputs(150)
    eager = with_gradients(lambda q, k, v, packing: sdpa(q * 2, k, v, packing) + 1, tensors, packing)
    for a, b in zip(with_gradients(compiled, tensors, packing), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_documents_that_end_elsewhere_do_not_compile_again():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(sdpa, fullgraph=True, backend=counter)
    tensors = inputs(150)
    for boundaries in ([0, 20, 150, 150], [0, 150, 150, 150], [0, 50, 100, 150], [0, 1, 2, 150]):
        packing = packed(boundaries, max_seqlen=150)
        for a, b in zip(
            with_gradients(compiled, tensors, packing), with_gradients(sdpa, tensors, packing), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


def test_packing_keeps_boundaries_in_main_memory_and_int32():
    packing = Packing.from_cu_seqlens(torch.tensor([0, 3, 9]))
    assert packing.cu_seqlens.dtype == packing.boundaries.dtype == torch.int32
    assert packing.to(torch.device("meta")).boundaries.tolist() == [0, 3, 9]


@pytest.mark.parametrize(("longest", "rounded"), [(0, 1), (1, 1), (2, 2), (3, 4), (2047, 2048), (2048, 2048)])
def test_the_longest_segment_is_rounded_up_unless_it_is_given(longest, rounded):
    assert packed([0, longest, longest]).max_seqlen == rounded
    assert packed([0, longest, longest], 2050).max_seqlen == 2050


@pytest.mark.parametrize(
    ("boundaries", "longest", "message"),
    [
        ([1, 4], None, "starts at 0"),
        ([0, 4, 3], None, "never decrease"),
        ([0], None, "at least two"),
        ([0, 9], 8, "a segment of 9 tokens is longer than max_seqlen=8"),
    ],
)
def test_packing_refuses_what_is_not_a_list_of_boundaries(boundaries, longest, message):
    with pytest.raises(ValueError, match=message):
        Packing.from_cu_seqlens(torch.tensor(boundaries), longest)


@given(lengths=documents)
def test_document_ids_number_the_segments(lengths):
    boundaries = [0, *itertools.accumulate(lengths)]
    expected = [number for number, length in enumerate(lengths) for _ in range(length)]
    assert packed(boundaries).document_ids(boundaries[-1]).tolist() == expected


def test_autocast_reaches_the_operation_of_a_compiled_graph():
    """Norms may leave queries and keys in fp32 beside values in bf16."""
    torch.compiler.reset()
    q, k, v = inputs(40)
    packing = packed([0, 7, 40])
    compiled = torch.compile(sdpa, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compiled(q, k, v.bfloat16(), packing)
        assert mixed.dtype == sdpa(q, k, v, packing).dtype == torch.bfloat16
        torch.testing.assert_close(mixed, sdpa(q, k, v.bfloat16(), packing))

"""Streams of fp32 under bf16 autocast: an embedding kept in fp32 begins one on a GPU."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pgolf.model.context import Context
from pgolf.model.mlp import squared
from pgolf.model.norm import rms_norm
from tests.model.test_compile import bottleneck, experts, full_stack, learned_activation, mixing, scrambled
from tests.model.test_compile_depth import everything, fixed_point

TOKENS = torch.randint(1, 64, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "build", [full_stack, experts, learned_activation, mixing, bottleneck, everything, fixed_point]
)
def test_every_part_computes_under_autocast_on_a_stream_of_fp32(build):
    model = scrambled(build())
    model.set_plan("looped")
    expected = model.logits(model(TOKENS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = Context().begun(TOKENS)
        logits = model.logits(model(TOKENS, context), context)
    assert context.walk.kept["x0", 0].dtype == torch.float32 or build is mixing  # whose narrow table ends in bf16
    assert torch.isfinite(logits).all() and (logits - expected).norm() < 0.1 * expected.norm()
    logits.square().mean().backward()


@contextlib.contextmanager
def bf16_on_a_gpu() -> Iterator[None]:
    """Autocast for GPU tensors, without a GPU: torch.autocast would not be switched on."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_norms_and_squares_keep_their_dtype_under_autocast_on_a_gpu(dtype):
    """Autocast would compute powers, and since torch 2.12 norms, in fp32 and leave them so: twice the memory."""
    with FakeTensorMode(), torch.no_grad(), bf16_on_a_gpu():
        x = torch.empty(2, 8, device="cuda", dtype=dtype)
        assert rms_norm(x).dtype == rms_norm(x, 0.5).dtype == squared(x).dtype == dtype
        assert x.square().dtype == torch.float32 and torch.is_autocast_enabled("cuda")


def test_a_square_has_its_usual_bits():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(squared(x), x.square()) and torch.equal(x * x, x.square())

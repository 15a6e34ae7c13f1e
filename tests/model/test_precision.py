"""Streams of fp32 under bf16 autocast: an embedding kept in fp32 begins one on a GPU."""

import pytest
import torch

from pgolf.model.context import Context
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

"""Wirings of late layers against their formulas, written out pass by pass."""

from functools import partial

import pytest
import torch

from pgolf.model.context import PLAIN
from pgolf.model.lanes import ExchangingLanes, ParallelResidual, SeparateLanes, TwoLane
from pgolf.model.norm import rms_norm
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def wired(wiring, **parts):
    return tiny_model(scramble=0.2, lanes=partial(wiring, start_layer=2, **parts))


def mix(block, x, x0):
    return block.resid_mix[0] * x + block.resid_mix[1] * x0


def attended(block, u, layer):
    return block.attn_scale * block.attn(rms_norm(u) / (layer + 1) ** 0.5, 0, PLAIN)


def fed(block, v, layer):
    return block.mlp_scale * block.mlp(rms_norm(v) / (layer + 1) ** 0.5, 0, PLAIN)


def skipped(model, x, skip, row):
    gate = torch.sigmoid(model.skip_gates[row])
    return gate * x + (1 - gate) * model.skip_weights[row] * skip


def first_half(model):
    """x0, and the outputs of blocks 0 and 1 (the plain plan of four layers has its lanes in blocks 2 and 3)."""
    x = x0 = rms_norm(model.tok_emb(TOKENS))
    outputs = []
    for layer in (0, 1):
        block = model.blocks[layer]
        u = mix(block, x, x0)
        v = u + attended(block, u, layer)
        x = v + fed(block, v, layer)
        outputs.append(x)
    return x0, outputs


def test_parallel_residual():
    model = wired(ParallelResidual)
    x0, kept = first_half(model)
    x = kept[1]
    for layer, row in ((2, 0), (3, 1)):
        block = model.blocks[layer]
        u = mix(block, skipped(model, x, kept.pop(), row), x0)
        x = u + attended(block, u, layer) + fed(block, u, layer)
    torch.testing.assert_close(model(TOKENS), rms_norm(x))


@pytest.mark.parametrize("final_lane", ["mean", "attn", "mlp"])
def test_two_lane(final_lane):
    model = wired(TwoLane, final_lane=final_lane)
    x0, kept = first_half(model)
    lane0 = lane1 = kept[1]
    for layer, row in ((2, 0), (3, 1)):
        block = model.blocks[layer]
        post, resid = model.lanes.parallel_post_lambdas[layer], model.lanes.parallel_resid_lambdas[layer]
        lane0 = skipped(model, lane0, kept.pop(), row)
        a, b = attended(block, mix(block, lane0, x0), layer), fed(block, lane1, layer)
        lane0, lane1 = (
            resid[0] * lane0 + post[0, 0] * a + post[1, 0] * b,
            resid[1] * lane1 + post[0, 1] * a + post[1, 1] * b,
        )
    expected = {"mean": (lane0 + lane1) / 2, "attn": lane0, "mlp": lane1}[final_lane]
    torch.testing.assert_close(model(TOKENS), rms_norm(expected))


def test_exchanging_lanes():
    model = wired(ExchangingLanes)
    x0, kept = first_half(model)
    lane0 = lane1 = kept[1]
    for layer, row in ((2, 0), (3, 1)):
        block, skip = model.blocks[layer], kept.pop()
        post, resid = model.lanes.parallel_post_lambdas[layer], model.lanes.parallel_resid_lambdas[layer]
        lane0, lane1 = skipped(model, lane0, skip, row), skipped(model, lane1, skip, row)
        a = attended(block, mix(block, lane0, x0), layer)
        lane0, lane1 = resid[0] * lane0 + post[0, 0] * a, resid[0] * lane1 + post[0, 1] * a
        b = fed(block, mix(block, lane1, x0), layer)
        lane0, lane1 = resid[1] * lane0 + post[1, 0] * b, resid[1] * lane1 + post[1, 1] * b
    torch.testing.assert_close(model(TOKENS), rms_norm((lane0 + lane1) / 2))


def test_separate_lanes():
    model = wired(SeparateLanes)
    x0, kept = first_half(model)
    lane0 = lane1 = kept[1]
    for layer in (2, 3):
        block = model.blocks[layer]
        lane0 = mix(block, lane0, x0)
        lane0, lane1 = lane0 + attended(block, lane0, layer), lane1 + fed(block, lane1, layer)
    share = model.lanes.lane_merge
    torch.testing.assert_close(model(TOKENS), rms_norm(share * lane0 + (1 - share) * lane1))


def test_initial_values_of_the_lambdas():
    lanes = tiny_model(lanes=partial(TwoLane, start_layer=2, final_lane="mean")).lanes
    assert lanes.parallel_post_lambdas.shape == (4, 2, 2) and bool((lanes.parallel_post_lambdas == 1).all())
    assert lanes.parallel_resid_lambdas.shape == (4, 2) and bool((lanes.parallel_resid_lambdas == 1.1).all())
    exchanging = tiny_model(lanes=partial(ExchangingLanes, start_layer=2)).lanes
    torch.testing.assert_close(exchanging.parallel_resid_lambdas, torch.full((4, 2), 1.1).sqrt())
    assert tiny_model(lanes=partial(SeparateLanes, start_layer=2)).lanes.lane_merge.item() == 0.5
    assert not list(tiny_model(lanes=partial(ParallelResidual, start_layer=2)).lanes.parameters())

"""Smears that are no additive gate, the running mean, and the gate on what a block does, against their formulas."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.gates import BlockGate, BlockGates, HeadGate
from pgolf.model.lanes import TwoLane
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth, Pass
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.smear import ConvexSmear, MlpSmears, RunningMean, RunningMeans, running_mean
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))
TOKENS[:, 5] = 1


def scramble(part):
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return part


@pytest.mark.parametrize("bos_id", [None, 1])
@pytest.mark.parametrize("weighs", ["current", "previous"])
def test_convex_smear_follows_its_formula(weighs, bos_id):
    part = scramble(ConvexSmear(8, weighs=weighs, start=0.0, after_norm=True, bos_id=bos_id))
    e = torch.randn(2, 12, 8)
    x, share = part(e, TOKENS), torch.sigmoid(part.smear_gamma)
    for t in range(12):
        before = torch.zeros(2, 8) if t == 0 or (t == 5 and bos_id == 1) else e[:, t - 1]
        expected = (
            share * e[:, t] + (1 - share) * before if weighs == "current" else (1 - share) * e[:, t] + share * before
        )
        torch.testing.assert_close(x[:, t], expected)


@pytest.mark.parametrize(("start", "kept"), [(0.0, 0.5), (3.0, 0.9525741)])
def test_a_new_convex_smear_is_no_identity(start, kept):
    part = ConvexSmear(8, weighs="current", start=start, after_norm=False, bos_id=1)
    initialise(part, 0)
    e = torch.randn(2, 12, 8)
    torch.testing.assert_close(part(e, TOKENS)[:, 0], kept * e[:, 0])


@pytest.mark.parametrize("after_norm", [False, True])
def test_convex_smear_comes_before_or_after_the_norm(after_norm):
    part = partial(ConvexSmear, weighs="previous", start=0.0, after_norm=after_norm, bos_id=None)
    model = tiny_model(scramble=0.3, smear=part)
    e = model.tok_emb(TOKENS)
    expected = model.smear(rms_norm(e), TOKENS) if after_norm else rms_norm(model.smear(e, TOKENS))
    torch.testing.assert_close(model._embed(TOKENS, Context()), expected)


@pytest.mark.parametrize(("share", "within", "stops"), [(0.5, "document", (0, 5)), (0.25, "row", (0,))])
def test_an_mlp_reads_its_place_and_the_one_before(share, within, stops):
    model = tiny_model(scramble=0.3, mlp_smear=MlpSmears(share=share, within=within))
    normed, read = [], []
    block = model.blocks[2]
    block.mlp_smear.register_forward_pre_hook(lambda module, inputs: normed.append(inputs[0]))
    block.mlp.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    model(TOKENS[:1], Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 5, 12]))))
    n, m = normed[0], read[0]
    for t in range(12):
        before = 0.0 if t in stops else n[:, t - 1]
        torch.testing.assert_close(m[:, t], share * n[:, t] + (1 - share) * before)
    assert not any("mlp_smear" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="between 0 and 1"):
        MlpSmears(share=1.5, within="row")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 2**31))
@settings(deadline=None)
def test_the_running_mean_is_over_the_document_alone(lengths, seed):
    total = sum(lengths)
    if not total:
        return
    x = torch.randn(1, total, 3, generator=torch.Generator().manual_seed(seed))
    packing = Packing.from_cu_seqlens(torch.tensor([0, *lengths]).cumsum(0))
    alone = [running_mean(one, None) for one in x.split(lengths, dim=1)]
    assert torch.equal(running_mean(x, packing), torch.cat(alone, dim=1))  # to the last bit
    expected = torch.cat(
        [one.cumsum(1) / torch.arange(1, one.shape[1] + 1)[:, None] for one in x.split(lengths, dim=1)], 1
    )
    torch.testing.assert_close(running_mean(x, packing), expected)


def test_the_running_mean_follows_its_formula_behind_every_block():
    part, x = scramble(RunningMean(8)), torch.randn(2, 12, 8)
    share = torch.tanh(part.smear_gamma)
    mean = x.cumsum(1) / torch.arange(1, 13)[:, None]
    torch.testing.assert_close(part(x, x, Context()), x + share * (mean - x))
    plain, smeared = tiny_model(scramble=0.3), tiny_model(running_mean=RunningMeans())
    smeared.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(plain(TOKENS), smeared(TOKENS))  # gamma starts at 0
    scramble(smeared.blocks[1].ends)
    x0, packing = torch.randn(1, 12, 32), Packing.from_cu_seqlens(torch.tensor([0, 5, 12]))
    step, context = Pass(1, 1, 1), Context(packing=packing).begun(TOKENS)
    share = torch.tanh(smeared.blocks[1].ends["running_mean"].smear_gamma)
    out = plain.blocks[1](x0, x0, step, context)
    expected = out + share * (running_mean(out, packing) - out)
    torch.testing.assert_close(smeared.blocks[1](x0, x0, step, context), expected)


def test_the_block_gate_follows_its_formula_and_gives_its_input_no_gradient():
    part, u, x = scramble(BlockGate(8, 2.0)), torch.randn(2, 12, 8, requires_grad=True), torch.randn(2, 12, 8)
    gate = torch.sigmoid(u @ part.block_gate_w.T + part.block_gate_b)
    out = part(u, x, Context())
    torch.testing.assert_close(out, u + gate * (x - u))
    (gradient,) = torch.autograd.grad(out.sum(), u)
    torch.testing.assert_close(gradient, (1 - gate).expand_as(u))
    model = tiny_model(block_gate=BlockGates(start=2.0))
    assert {parameter_roles(model)[f"blocks.0.ends.gate.block_gate_{name}"] for name in "wb"} == {"gate"}
    before, after = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    kept = torch.sigmoid(torch.tensor(2.0))
    torch.testing.assert_close(model.blocks[0].ends["gate"](before, after, Context()), before + kept * (after - before))


def test_the_block_gate_starts_from_the_mixed_input():
    plain, gated = tiny_model(scramble=0.3), tiny_model(block_gate=BlockGates(start=2.0))
    gated.load_state_dict(plain.state_dict(), strict=False)
    x, x0, step, context = torch.randn(1, 4, 32), torch.randn(1, 4, 32), Pass(1, 1, 1), Context().begun(TOKENS)
    u, out = plain.blocks[1].mix(x, x0), plain.blocks[1](x, x0, step, context)
    expected = u + torch.sigmoid(torch.tensor(2.0)) * (out - u)
    torch.testing.assert_close(gated.blocks[1](x, x0, step, context), expected)


@pytest.mark.parametrize("bias", [2.94, 4.0])
def test_dense_gate_with_a_bias(bias):
    gate = HeadGate(16, 4, width=None, scale=1.0, init_std=0.0, bias=bias)
    initialise(gate, 0)
    n = torch.randn(2, 3, 16)
    opened = torch.sigmoid(torch.tensor(bias))
    torch.testing.assert_close(gate(n, n), opened.expand(2, 3, 4, 1))
    assert 0.94 < opened < 0.99
    scramble(gate)
    torch.testing.assert_close(gate(n, n), torch.sigmoid(n @ gate.attn_gate_w.T + gate.attn_gate_b)[..., None])
    assert set(parameter_roles(gate).values()) == {"gate"}
    without = tiny_model()
    assert not any("gate" in name for name in without.state_dict() if "skip" not in name)  # absent is absent


@pytest.mark.parametrize("part", [{"block_gate": BlockGates(start=2.0)}, {"running_mean": RunningMeans()}])
def test_blocks_on_lanes_get_no_part_that_lanes_do_not_pass(part):
    lanes = partial(TwoLane, start_layer=2, final_lane="mean")
    model = tiny_model(scramble=0.3, lanes=lanes, num_loops=0, **part)
    assert [len(block.ends) for block in model.blocks] == [1, 1, 0, 0]
    model.logits(model(TOKENS)).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())
    depth = Depth(num_layers=1, loop_start=0, loop_end=0, num_loops=0, skips=False)
    with pytest.raises(ValueError, match=f"{next(iter(part))}: every block is walked on lanes"):
        tiny_model(lanes=partial(TwoLane, start_layer=0, final_lane="mean"), depth=depth, **part)

"""The model: documents are isolated, absent is absent, names and roles, parity with the published baseline."""

from functools import partial

import pytest
import torch

from pgolf.kernels.packing import Packing
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import HEAD_SLOT, Context
from pgolf.model.exclude import exclude_value
from pgolf.model.gates import HeadGate
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth
from pgolf.model.roles import Part, initialise, parameter_roles
from pgolf.model.rope import Rotary
from tests.support import tiny_model

SPARSE = partial(HeadGate, width=12, scale=1.0, init_std=0.0)


def logits(model, tokens, context=None):
    context = context or Context()
    return model.logits(model(tokens, context), context)


def attention(dim, num_heads, num_kv_heads, dims=4):
    rope = Rotary(dims=dims, base=1e4)
    return CausalSelfAttention(
        dim, 1.0, 0, 1, num_heads=num_heads, num_kv_heads=num_kv_heads, rope=rope, exclude=None, gate=None
    )


def test_packed_documents_score_as_if_alone():
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    tokens = torch.randint(4, 64, (1, 40), generator=torch.Generator().manual_seed(0))
    packed = logits(model, tokens, Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 17, 40, 40]))))
    alone = torch.cat([logits(model, tokens[:, :17]), logits(model, tokens[:, 17:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_no_prediction_reads_later_tokens(plan):
    model = tiny_model(scramble=0.1)
    model.set_plan(plan)
    tokens = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 13:] = 5
    before, after = logits(model, tokens), logits(model, changed)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


def test_recurrence_changes_the_function_and_not_the_parameters():
    model = tiny_model(scramble=0.1)
    tokens = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(0))
    plain = logits(model, tokens)
    model.set_plan("looped")
    assert not torch.allclose(plain, logits(model, tokens))
    with pytest.raises(ValueError, match="plain, looped"):
        model.set_plan("spiral")


def test_a_part_that_is_added_moves_no_other_initial_value():
    bare = tiny_model().state_dict()
    gated = tiny_model(gate=partial(HeadGate, width=12, scale=1.0, init_std=0.02)).state_dict()
    assert set(bare) < set(gated)
    assert all(torch.equal(bare[name], gated[name]) for name in bare)


def test_initial_values_depend_on_seed_and_name_only():
    one, again, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.tok_emb.weight, other.tok_emb.weight)
    assert not torch.equal(one.blocks[0].attn.c_q.weight, one.blocks[1].attn.c_q.weight)


def test_sparse_gate_halves_the_heads_at_its_start_and_follows_its_formula():
    gate = HeadGate(16, 4, width=6, scale=0.5, init_std=0.0)
    with torch.no_grad():
        gate.attn_gate_w.zero_()
    x = torch.randn(2, 3, 16)
    assert torch.equal(gate(x, x), torch.full((2, 3, 4, 1), 0.5))
    with torch.no_grad():
        gate.attn_gate_w.normal_()
    expected = torch.sigmoid(0.5 * torch.einsum("btd,hd->bth", x[..., :6], gate.attn_gate_w))[..., None]
    torch.testing.assert_close(gate(x, x), expected)
    model = tiny_model(gate=SPARSE, scramble=0.1)
    tokens = torch.arange(4, 20)[None]
    assert not torch.allclose(logits(model, tokens), logits(tiny_model(scramble=0.1), tokens))


def test_roles_cover_every_parameter():
    model = tiny_model(gate=SPARSE)
    roles = parameter_roles(model)
    assert set(roles) == {name for name, _ in model.named_parameters()}
    assert roles["tok_emb.weight"] == "embedding"
    assert roles["blocks.0.attn.c_q.weight"] == roles["blocks.3.mlp.proj.weight"] == "matrix"
    assert roles["blocks.2.attn.q_gain"] == roles["skip_weights"] == "scalar"
    assert roles["blocks.1.attn.gate.attn_gate_w"] == "gate"


def test_a_parameter_without_a_role_is_an_error():
    class Careless(Part):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="without a role: weight"):
        parameter_roles(Careless())


def test_meta_device_builds_without_memory():
    with torch.device("meta"):
        model = tiny_model(dim=1024)
    assert all(parameter.is_meta for parameter in model.parameters())
    initialise(model, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: attention(100, num_heads=8, num_kv_heads=4), "model.dim=100 is not divisible"),
        (lambda: attention(96, num_heads=6, num_kv_heads=4), "num_kv_heads=4"),
        (lambda: attention(64, num_heads=8, num_kv_heads=4, dims=16), "exceeds the head dimension 8"),
        (lambda: attention(64, num_heads=0, num_kv_heads=4), "num_heads=0 and num_kv_heads=4 must be at least 1"),
        (lambda: attention(64, num_heads=8, num_kv_heads=0), "num_kv_heads=0 must be at least 1"),
        (lambda: Rotary(dims=3, base=1e4), "even"),
        (lambda: Rotary(dims=4, base=0.0), "base=0.0 must be positive"),
        (lambda: tiny_model(dim=0), "dim=0 must be at least 1"),
        (lambda: tiny_model(embedding_std=-0.1), "embedding_std=-0.1 not negative"),
        (lambda: LeakyReLUSquared(8, 0, 1, multiple=0.01, slope=0.5), "no hidden unit"),
        (lambda: HeadGate(8, 2, width=12, scale=1.0, init_std=0.0), "between 1 and model.dim=8"),
        (lambda: Depth(num_layers=4, loop_start=2, loop_end=4, num_loops=1, skips=True), "layers 0..3"),
        (lambda: Depth(num_layers=0, loop_start=0, loop_end=0, num_loops=0, skips=True), "at least one layer"),
    ],
)
def test_impossible_sizes_are_refused_in_a_sentence(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_plan_of_the_published_recurrence():
    """Layers 3-5 three times: encoder 0 1 2 3 4 5 3 4, decoder 5 3 4 5 6 7 8 9 10, eight skips; five before (spec of
    PR 1493)."""
    depth = Depth(num_layers=11, loop_start=3, loop_end=5, num_loops=2, skips=True)
    looped, plain = depth.plans["looped"], depth.plans["plain"]
    assert [step.block for step in looped.passes if step.push] == [0, 1, 2, 3, 4, 5, 3, 4]
    assert [step.block for step in looped.passes if not step.push] == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [step.pop for step in looped.passes if not step.push] == [0, 1, 2, 3, 4, 5, 6, 7, None]
    assert (looped.num_skips, plain.num_skips) == (8, 5)
    assert [row["visit"] for row in looped.rows() if row["block"] == 4] == [1, 2, 3]


def test_rms_norm_values_and_gradients():
    x = torch.randn(5, 16, dtype=torch.float64, requires_grad=True)
    expected = 0.3 * torch.nn.functional.rms_norm(x, (16,), eps=1.1920928955078125e-07)
    torch.testing.assert_close(rms_norm(x, 0.3), expected)
    assert torch.autograd.gradcheck(lambda y: rms_norm(y, 0.3), x)


def test_exclude_value_leaves_nothing_along_the_value():
    y, v = torch.randn(2, 7, 4, 8), torch.randn(2, 7, 2, 8)
    left = exclude_value(y, v)
    along = (left * v.repeat_interleave(2, dim=2)).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-4, rtol=0)
    assert torch.equal(exclude_value(y, torch.zeros_like(v)), y)


def test_adapters_reach_every_site_of_every_slot():
    model = tiny_model(scramble=0.1)
    model.set_plan("looped")
    asked = []

    class Witness:
        def delta(self, slot, site, x):
            asked.append((slot, site))
            return None

    tokens = torch.arange(4, 20)[None]
    context = Context(adapters=Witness())
    assert torch.equal(logits(model, tokens, context), logits(model, tokens))
    slots = range(len(model.plan.passes))
    assert sorted(asked) == sorted(
        [(slot, site) for slot in slots for site in ("q", "k", "v", "o", "mlp")] + [(HEAD_SLOT, "head")]
    )

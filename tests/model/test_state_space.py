"""Mamba-2 in the place of attention: the recurrence written out, documents, causality, adapters and quantisation."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import UserError
from pgolf.kernels.packing import Packing
from pgolf.model.block import WithoutAttention
from pgolf.model.context import PLAIN, Context
from pgolf.model.differential import Differential
from pgolf.model.equilibrium import RevDEQ
from pgolf.model.flops import flops_per_token
from pgolf.model.lanes import TwoLane
from pgolf.model.plan import Depth
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.state_space import Mamba2, StateSpace, convolve, scan
from pgolf.model.vectors import VirtualVectors
from pgolf.quant.hessian import HessianCollector
from pgolf.quant.rotations import InternalOnly
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.model import test_mixtures
from tests.model.test_compile import check, contexts
from tests.model.test_flops import no_attention
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 23), generator=torch.Generator().manual_seed(1))
CUTS = torch.tensor([0, 5, 6, 6, 19, 23, 23])
HYBRID = [0, 2, 3]


def state_space(layers=None, **sizes):
    return StateSpace(
        layers=layers, **{"state_dim": 6, "head_dim": 8, "expand": 1, "conv_width": 4, "chunk": 8, **sizes}
    )


def model_of(layers=None, scramble=0.2, **parts):
    return tiny_model(scramble=scramble, state_space=state_space(layers), **parts)


def inputs(length, heads=3, width=4, state=5, scale=1.0, seed=0):
    """x, b, c and logarithms of decays in fp64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, length, heads, width), (2, length, state), (2, length, state), (2, length, heads)]
    x, b, c, decay = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, b, c, -scale * decay.exp()


def recurrence(x, b, c, log_decay, starts):
    """h_t = e^a_t h_{t-1} + x_t b_t^T; y_t = h_t c_t, with h = 0 before each of `starts`."""
    h = x.new_zeros(*x.shape[:1], *x.shape[2:], b.shape[-1])
    rows = []
    for t in range(x.shape[1]):
        if t in starts:
            h = torch.zeros_like(h)
        h = log_decay[:, t].exp()[..., None, None] * h + x[:, t, :, :, None] * b[:, t, None, None, :]
        rows.append((h * c[:, t, None, None, :]).sum(-1))
    return torch.stack(rows, dim=1)


def ids_of(cuts, length):
    return Packing.from_cu_seqlens(torch.as_tensor(cuts)).document_ids(length)


@given(
    length=st.integers(1, 40),
    chunk=st.integers(1, 50),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_chunk_length_gives_the_recurrence(length, chunk, cuts, scale):
    starts = sorted(min(cut, length) for cut in cuts)
    made = inputs(length, scale=scale)
    got = scan(*made, ids_of([0, *starts, length], length), chunk)
    torch.testing.assert_close(got, recurrence(*made, starts), rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_the_recurrence():
    made = [one.requires_grad_() for one in inputs(19, scale=3.0)]
    weights = torch.randn(2, 19, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = [
        torch.autograd.grad((value * weights).sum(), made)
        for value in (scan(*made, ids_of([0, 7, 19], 19), 4), recurrence(*made, [7]))
    ]
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_decays_of_any_size_in_fp32():
    """Heads that forget at once and heads that never do, over hundreds of chunks."""
    made = inputs(600, scale=1.0)
    strong = made[3] * torch.tensor([1e-5, 1.0, 1e4], dtype=torch.float64)
    expected = recurrence(*made[:3], strong, [])
    got = scan(*(one.float() for one in made[:3]), strong.float(), ids_of([0, 600], 600), 2)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)
    leaves = [one.float().requires_grad_() for one in (*made[:3], strong)]
    scan(*leaves, ids_of([0, 600], 600), 64).sum().backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_the_convolution_stays_within_its_document():
    generator = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((1, 9, 3), (3, 4), (3,)))
    got = convolve(x, weight, bias, ids_of([0, 2, 9], 9))
    for t in range(9):
        start = 0 if t < 2 else 2
        expected = bias + sum(weight[:, 3 - i] * x[0, t - i] for i in range(4) if t - i >= start)
        torch.testing.assert_close(got[0, t], expected)
    alone = torch.nn.functional.conv1d(torch.nn.functional.pad(x.mT, (3, 0)), weight[:, None], bias, groups=3).mT
    torch.testing.assert_close(convolve(x, weight, bias, ids_of([0, 9], 9)), alone)
    assert convolve(x[:, :2], weight, bias, ids_of([0, 2], 2)).shape == (1, 2, 3)  # shorter than the convolution


def test_the_mixer_is_its_formula():
    mixer = Mamba2(16, 24, state_dim=5, head_dim=8, conv_width=3, chunk=4)
    initialise(mixer, 0)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    n = torch.randn(2, 11, 16, generator=generator)
    p = {name: value.detach().double() for name, value in mixer.named_parameters()}
    wide = n.double() @ p["in_proj.weight"].T
    z, mixed, dt = wide[..., :24], wide[..., 24:58], wide[..., 58:]
    padded = torch.nn.functional.pad(mixed.mT, (2, 0))
    mixed = torch.nn.functional.conv1d(padded, p["conv_weight"][:, None], p["conv_bias"], groups=34).mT
    mixed = mixed * torch.sigmoid(mixed)
    x, b, c = mixed[..., :24].unflatten(-1, (3, 8)), mixed[..., 24:29], mixed[..., 29:]
    dt = torch.log1p(torch.exp(dt + p["dt_bias"]))
    y = recurrence(dt[..., None] * x, b, c, -p["A_log"].exp() * dt, []) + p["D"][:, None] * x
    y = y.flatten(2) * z * torch.sigmoid(z)
    y = p["gain"] * y / (y.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    torch.testing.assert_close(mixer(n, PLAIN).double(), y @ p["out_proj.weight"].T, rtol=1e-4, atol=1e-5)


def test_initial_values():
    mixer = Mamba2(64, 4096, state_dim=8, head_dim=2, conv_width=4, chunk=4)
    initialise(mixer, 0)
    rates, steps = mixer.A_log.detach().exp(), torch.nn.functional.softplus(mixer.dt_bias.detach())
    assert 1.0 <= float(rates.min()) < 1.1 and 15.9 < float(rates.max()) <= 16.0
    assert float(rates.mean()) == pytest.approx(8.5, rel=0.05)
    assert 0.00099 < float(steps.min()) < 0.0011 and 0.095 < float(steps.max()) < 0.1001
    assert float(steps.median()) == pytest.approx(0.01, rel=0.15)
    assert not mixer.out_proj.weight.any() and bool((mixer.D == 1).all() and (mixer.gain == 1).all())
    assert 0.49 < float(mixer.conv_weight.detach().abs().max()) <= 0.5


@pytest.mark.parametrize("layers", [None, HYBRID])
@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_a_packed_row_is_its_documents_alone(layers, plan):
    model = model_of(layers)
    model.set_plan(plan)
    packed = model(TOKENS[:1], Context(packing=Packing.from_cu_seqlens(CUTS)))
    pairs = [(first, after) for first, after in zip(CUTS.tolist(), CUTS[1:].tolist(), strict=False) if first < after]
    alone = torch.cat([model(TOKENS[:1, first:after]) for first, after in pairs], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(packed, model(TOKENS[:1]), atol=1e-2)


def test_nothing_before_a_changed_token_changes():
    model = model_of()
    changed = TOKENS.clone()
    changed[:, 13] += torch.where(changed[:, 13] < 60, 1, -1)
    before, after = model(TOKENS), model(changed)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.isclose(before, after).all(-1)[:, 13:].any()  # and everything behind it does


def test_blocks_have_it_in_the_place_of_attention():
    model, plain = model_of(HYBRID, scramble=0.0), tiny_model()
    names, before = model.state_dict(), plain.state_dict()
    assert not any(name.startswith(f"blocks.{layer}.attn.") for name in names for layer in HYBRID)
    assert "blocks.1.attn.c_q.weight" in names and "blocks.0.attn_scale" in names
    assert all(torch.equal(names[name], before[name]) for name in names.keys() & before.keys())
    added = {name.rpartition("state_space.")[2] for name in names.keys() - before.keys()}
    matrices = {"in_proj.weight", "out_proj.weight"}
    assert added == {*matrices, "conv_weight", "conv_bias", "A_log", "dt_bias", "D", "gain"}
    roles, sites = parameter_roles(model), model.calibration_sites()
    for name in added:
        assert roles[f"blocks.2.state_space.{name}"] == ("matrix" if name in matrices else "scalar")
        assert (f"blocks.2.state_space.{name}" in sites) == (name in matrices)
    assert model.attention is model.blocks[1].attn and model_of().attentions == []


def test_the_stream_takes_the_scaled_mixer():
    """u = m0 x + m1 x0; v = u + attn_scale * mamba2(norm(u) s); out = v + mlp_scale * mlp(norm(v) s)."""
    model = model_of()
    block, step = model.blocks[1], model.plans["plain"].passes[1]
    x, x0 = (torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    u = block.resid_mix[0] * x + block.resid_mix[1] * x0
    v = u + block.attn_scale * block.state_space(block.normed(u, step), PLAIN)
    expected = v + block.mlp_scale * block.mlp(block.normed(v, step), 0, PLAIN)
    torch.testing.assert_close(block(x, x0, step, PLAIN), expected)
    torch.testing.assert_close(block.attend(u, step, PLAIN), v - u)


@pytest.mark.parametrize("parts", [{}, {"lanes": partial(TwoLane, start_layer=2, final_lane="mean")}])
def test_everything_has_a_gradient(parts):
    model = model_of(HYBRID, **parts)
    model.set_plan("looped")
    model.logits(model(TOKENS)).square().mean().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert silent == set()
    assert all(p.grad.any() for block in model.blocks if block.state_space for p in block.state_space.parameters())


def test_it_learns():
    """Each token is the one two places before: the state has to carry it."""
    model = tiny_model(state_space=state_space(), num_layers=3, vocab_size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        pairs = torch.randint(0, 16, (8, 2), generator=generator)
        tokens = pairs.repeat(1, 9)
        loss = torch.nn.functional.cross_entropy(
            model.logits(model(tokens[:, :-1]))[:, 2:].flatten(0, 1), tokens[:, 3:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 < 2.0 < losses[0]


def test_hessians_are_those_of_what_the_matrices_read():
    model = model_of(HYBRID)
    name = "blocks.0.state_space.out_proj.weight"
    seen = []
    model.blocks[0].state_space.out_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), HessianCollector({name: model.calibration_sites()[name]}) as collector:
        model(TOKENS)
    rows = seen[0].flatten(0, 1)
    torch.testing.assert_close(collector.result(1)[name].hessian, rows.T @ rows)


def test_adapters_attach_to_the_mlp_alone():
    model = model_of(HYBRID)
    sites = {(slot, site) for slot, site, *_ in model.adapter_sites()}
    assert {site for slot, site in sites if slot == 0} == {"mlp"}
    assert {site for slot, site in sites if slot == 1} == {"q", "k", "v", "o", "mlp"}
    chosen = LoraSettings(
        rank=2, alpha=2.0, targets=["q", "v", "mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-8, weight_decay=0.0
    )
    adapters = BatchedLora(model, 2, chosen, 0, "test")
    assert torch.equal(model(TOKENS, Context(adapters=adapters)), model(TOKENS))
    model(TOKENS, Context(adapters=adapters)).square().sum().backward()
    assert adapters.up["0:mlp"].grad.any() and adapters.up["1:v"].grad.any() and "0:v" not in adapters.up


def test_copies_are_independent_and_load():
    model = model_of(HYBRID)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].state_space.A_log.add_(1.0)
    assert not torch.allclose(model(TOKENS), other(TOKENS))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))


@pytest.mark.parametrize("layers", [None, HYBRID])
@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_operations_are_those_that_torch_counts(layers, plan):
    """Torch counts all pairs of a chunk, the causal half and the diagonal is counted here; and what passes states on
    from chunk to chunk."""
    from torch.utils.flop_counter import FlopCounterMode

    model, length, chunk, inner, state = model_of(layers), 24, 8, 32, 6
    model.set_plan(plan)
    with FlopCounterMode(display=False) as counter:
        context = Context(attention=no_attention)
        model.logits(model(torch.zeros(1, length, dtype=torch.int64), context), context)
    visits = sum(model.blocks[step.block].state_space is not None for step in model.plan.passes)
    flops = flops_per_token(model, model.plan, length)
    dense = 2 * chunk * (state + inner) + 4 * inner * state
    passing = 2 * (length // chunk) ** 2 * inner * state / length
    assert counter.get_total_flops() / length == pytest.approx(flops.blocks + flops.head + visits * (dense + passing))
    attending = sum(2.0 * (length + 1) * 32 for step in model.plan.passes if model.blocks[step.block].attn is not None)
    assert flops.attention - attending == pytest.approx(visits * (dense - (chunk - 1) * (state + inner)))
    with_it, without = (flops_per_token(model, model.plan, tokens).attention for tokens in (8, 4096))
    assert (with_it == without) == (layers is None)  # linear in the sequence


def test_one_graph_a_plan():
    depth = Depth(num_layers=2, loop_start=0, loop_end=0, num_loops=1, skips=True)
    model = tiny_model(depth=depth, scramble=0.1, state_space=state_space([0]))
    check(model, "eager", ["plain", "looped"], contexts()[1:])


def test_the_backward_pass_of_a_packed_row_is_one_graph_too():
    mixer = Mamba2(8, 8, state_dim=3, head_dim=4, conv_width=3, chunk=4)
    initialise(mixer, 0)
    n, context = torch.randn(1, 48, 8, generator=torch.Generator().manual_seed(0)), contexts()[1]
    with torch.no_grad():
        mixer.out_proj.weight.normal_(generator=torch.Generator().manual_seed(1))

    def loss():
        return mixer(n, context).square().sum()

    torch._dynamo.reset()
    values = [one() for one in (torch.compile(loss, backend="aot_eager", fullgraph=True), loss)]
    torch.testing.assert_close(*values)
    leaves = dict(mixer.named_parameters())
    for name, got, expected in zip(leaves, *(torch.autograd.grad(one, leaves.values()) for one in values), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_a_fixed_point_of_it_has_a_direction():
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=0, skips=True)
    model = model_of(scramble=0.0, depth=depth, equilibrium=RevDEQ(layer=1, iterations=2, beta=0.35))
    assert model.blocks[1].state_space.out_proj.weight.any() and not model.blocks[0].state_space.out_proj.weight.any()
    model(TOKENS).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_rotations_of_values_say_that_there_are_none():
    InternalOnly(seed=1).enter(model_of(HYBRID, exclude_own_value=False))
    with pytest.raises(UserError, match="no block of this model has"):
        InternalOnly(seed=1).enter(model_of())


@given(test_mixtures.mixtures, st.sampled_from(test_mixtures.EXCLUDED), st.sampled_from(["plain", "looped"]))
@settings(max_examples=6, deadline=None, derandomize=True)
def test_any_mixture_with_it_works(parts, exclude, plan):
    """Causal, documents isolated, adapters that start at nothing, names that go both ways."""
    hybrid = {**parts, "vectors": None, "without_attention": None, "state_space": state_space([0, 2])}
    test_mixtures.test_any_mixture_of_parts_works.hypothesis.inner_test(hybrid, exclude, plan)


def test_bf16_products_under_autocast():
    """Steps, decays and states that are passed on stay in fp32."""
    mixer = Mamba2(16, 32, state_dim=8, head_dim=16, conv_width=4, chunk=16)
    initialise(mixer, 0)
    n = torch.randn(1, 100, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixer.out_proj.weight.normal_(generator=torch.Generator().manual_seed(1))
        exact = mixer(n, PLAIN)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = mixer(n.bfloat16(), PLAIN)
    assert rounded.dtype == torch.bfloat16
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize(
    ("sizes", "parts", "message"),
    [
        ({"chunk": 0}, {}, "state_space.chunk=0 must be at least 1"),
        ({"state_dim": 0}, {}, "state_space.state_dim=0 must be at least 1"),
        ({"layers": []}, {}, "each once, or null for all"),
        ({"layers": [1, 1]}, {}, "each once, or null for all"),
        ({"layers": [1, 4]}, {}, r"name 4, none of the layers 0\.\.3"),
        ({"layers": [-1]}, {}, r"name -1, none of the layers 0\.\.3"),
        ({"head_dim": 12}, {}, "head_dim=12 does not divide the width inside.* = 32"),
        ({"layers": [0]}, {"without_attention": WithoutAttention(layers=[0])}, "name 0, a block without attention"),
        ({}, {"vectors": VirtualVectors}, "set model/vectors=none"),
        ({}, {"differential": Differential()}, "no block has attention"),
    ],
)
def test_what_cannot_be_is_refused(sizes, parts, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(state_space=state_space(**sizes), **parts)


def test_all_takes_the_blocks_that_have_attention():
    model = model_of(without_attention=WithoutAttention(layers=[0]))
    assert [block.state_space is not None for block in model.blocks] == [False, True, True, True]

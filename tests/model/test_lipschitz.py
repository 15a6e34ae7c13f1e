"""Bounds of named terms: exact where there is one number to find, and never below what a model does."""

import math
from functools import partial

import pytest
import torch

from pgolf.kernels.reference import reference
from pgolf.model.activations import ASQU, XIELU
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.basis import LowRankLinear, OrthogonalLinear
from pgolf.model.binary import SignLinear
from pgolf.model.context import PLAIN
from pgolf.model.differential import Differential
from pgolf.model.exclude import gated_own_value
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.lanes import ParallelResidual, TwoLane
from pgolf.model.lipschitz import (
    block_terms,
    largest_singular_value,
    map_norm,
    mlp_slope,
    named_terms,
    singular_values,
)
from pgolf.model.mlp import LeakyReLUSquared, SwiGLU
from pgolf.model.moe import SoftDense
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth
from pgolf.model.query_gain import BoundedGains
from pgolf.model.roles import initialise, orthogonal
from pgolf.model.rope import Rotary
from pgolf.model.smear import MlpSmears
from tests.support import tiny_model

DIM, RADIUS = 6, 1.7
CONSTANTS = {"alpha_positive": 0.7, "alpha_negative": 1.3, "beta_positive": 0.4, "beta_negative": 0.9}
EXPERTS = {"num_experts": 3, "balance": 0.0, "min_share": 0.0, "max_spread": 0.0, "bias_rate": 0.0}
MLPS = {
    "leaky": partial(LeakyReLUSquared, multiple=2.0, slope=0.5),
    "steep below": partial(LeakyReLUSquared, multiple=2.0, slope=1.5),
    "xielu": partial(XIELU, multiple=2.0, **CONSTANTS),
    "learned xielu": partial(XIELU, multiple=2.0, **CONSTANTS, trainable=True),
    "asqu": partial(ASQU, multiple=2.0, negative_scale=0.25),
    "swiglu": partial(SwiGLU, multiple=2.0),
    "experts": partial(SoftDense, multiple=2.0, slope=0.5, **EXPERTS),
    "experts, gate frozen": partial(SoftDense, multiple=2.0, slope=0.5, **EXPERTS, frozen_gate=True),
}


def drawn(part, std=0.6, seed=0):
    initialise(part, 0)
    with torch.no_grad():
        for index, parameter in enumerate(part.parameters()):
            parameter.normal_(0.0, std, generator=torch.Generator().manual_seed(seed + index))
    return part.double()


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 6)])
def test_the_largest_singular_value(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert largest_singular_value(matrix) == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=1e-6)
    assert largest_singular_value(torch.zeros(shape)) == 0.0


def test_maps_of_several_matrices_count_as_the_matrix_they_make():
    low = LowRankLinear(8, 6, 2, orthogonal(), orthogonal())
    bounded = OrthogonalLinear(8, 6, 2.0, 1.0)
    for part in (low, bounded):
        initialise(part, 0)
    with torch.no_grad():
        low.up.weight *= 3.0
        bounded.gain.fill_(1.5)
    product = low.up.weight @ low.down.weight
    assert map_norm(low) == pytest.approx(float(torch.linalg.matrix_norm(product.detach(), 2)), rel=1e-5)
    assert map_norm(bounded) == pytest.approx(2.0 * math.tanh(0.75), rel=1e-5)
    assert map_norm(SignLinear(8, 6, "matrix", orthogonal())) is None  # not linear


@pytest.mark.parametrize("name", MLPS)
def test_no_mlp_is_steeper_than_its_bound(name):
    """Jacobians at many points within the radius, the worst of them not far below."""
    steepest, bounds = 0.0, []
    for seed in range(3):
        mlp = drawn(MLPS[name](DIM, 0, 1), seed=10 * seed)
        bound = mlp_slope(mlp, RADIUS, map_norm)
        bounds.append(bound)
        points = torch.randn(60, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        points = points / points.norm(dim=1, keepdim=True) * RADIUS
        _, _, v = torch.linalg.svd(mlp.fc.weight.detach())
        points = torch.cat((points, 0.5 * points, RADIUS * v[:1], -RADIUS * v[:1]))
        for point in points:
            jacobian = torch.autograd.functional.jacobian(lambda n, mlp=mlp: mlp(n[None, None], 0, PLAIN)[0, 0], point)
            norm = float(torch.linalg.matrix_norm(jacobian, 2))
            assert norm <= bound
            steepest = max(steepest, norm / bound)
    assert steepest > 0.05 and len(set(bounds)) == 3


def test_a_single_hidden_unit_reaches_its_bound():
    """W_down 2 h W_up at the end of the sphere where h = |W_up| radius: 2 |W_down| |W_up|^2 radius."""
    mlp = drawn(LeakyReLUSquared(DIM, 0, 1, multiple=1.01 / DIM, slope=0.5))
    up, down = mlp.fc.weight.detach(), mlp.proj.weight.detach()
    bound = mlp_slope(mlp, RADIUS, map_norm)
    assert bound == pytest.approx(float(2 * RADIUS * up.norm() ** 2 * down.norm()), rel=1e-9)
    point = RADIUS * up[0] / up.norm()
    jacobian = torch.autograd.functional.jacobian(lambda n: mlp(n[None, None], 0, PLAIN)[0, 0], point)
    assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(bound, rel=1e-9)


def test_a_frozen_gate_lowers_the_bound_of_experts():
    frozen, learned = (
        drawn(SoftDense(DIM, 0, 1, multiple=2.0, slope=0.5, **EXPERTS, frozen_gate=gate)) for gate in (True, False)
    )
    for name, value in frozen.state_dict().items():
        learned.state_dict()[name].copy_(value)
    assert mlp_slope(frozen, RADIUS, map_norm) < mlp_slope(learned, RADIUS, map_norm)
    injected = drawn(SoftDense(DIM, 0, 1, multiple=2.0, slope=0.5, **EXPERTS, inject=1.0))
    assert mlp_slope(injected, RADIUS, map_norm) is None


def test_a_matrix_that_is_no_number_has_no_largest_singular_value():
    """The step that made it ends the run with a sentence of its own."""
    assert math.isnan(largest_singular_value(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])))


def model_of(**parts):
    return tiny_model(scramble=0.4, **parts)


def test_the_path_of_values_is_not_longer_than_its_bound():
    """With probabilities as they are, no token's output moves further than the bound times the furthest input."""
    settings = {"num_heads": 4, "num_kv_heads": 2, "rope": Rotary(dims=4, base=1e4), "exclude": None}
    gate = partial(AttentionOutGate, width=12, source="proj")
    model = model_of(attention=partial(CausalSelfAttention, gate=gate, **settings), layer_scale=True)
    block, step = model.blocks[2], model.plan.passes[2]
    attention = block.attn
    bound = block_terms(model, step, map_norm)["attention"]
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 12, heads, 8, generator=generator) * 3 for heads in (4, 2))
    scale = (step.depth + 1) ** -0.5
    furthest = 0.0
    with torch.no_grad():
        for _ in range(50):
            moved = torch.randn(1, 12, 32, generator=generator)
            v = attention.c_v(scale * moved).unflatten(-1, (2, 8))
            out = block.attn_scale * attention.proj(2.0 * reference(q, k, v, None).flatten(2))  # gates at most 2
            furthest = max(furthest, float(out.norm(dim=-1).max() / moved.norm(dim=-1).max()))
    assert 0.02 * bound < furthest <= bound
    expected = largest_singular_value(attention.proj.weight) * largest_singular_value(attention.c_v.weight)
    expected *= 2.0 * math.sqrt(4) * scale * float(block.attn_scale.detach().abs().max())
    assert bound == pytest.approx(expected, rel=1e-5)


def test_scores_stay_within_their_bound():
    model = model_of(query_gain=BoundedGains(maximum=3.0))
    found = named_terms(model)
    n = 20.0 * torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(1))
    for layer, block in enumerate(model.blocks):
        attention = block.attn
        gain = float(attention.gains.detach().max())
        assert found["query_gains"][str(layer)] == pytest.approx(gain, rel=1e-6)
        assert found["score_bounds"][str(layer)] == pytest.approx(gain * 8**0.5, rel=1e-6)
        with torch.no_grad():
            q = attention._placed(attention.c_q(n).unflatten(-1, (4, 8)), PLAIN, attention.gains)
            k = attention._placed(attention.c_k(n).unflatten(-1, (2, 8)), PLAIN).repeat_interleave(2, dim=2)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5
        assert 0.5 * found["score_bounds"][str(layer)] < scores.abs().max() <= found["score_bounds"][str(layer)] * 1.001


@pytest.mark.parametrize("lanes", [None, partial(ParallelResidual, start_layer=2)])
def test_the_product_is_that_of_the_terms(lanes):
    model = model_of(lanes=lanes)
    forms = set()
    for step in model.plan.passes:
        block, terms = model.blocks[step.block], block_terms(model, step, map_norm)
        a, f = terms["attention"], terms["mlp"]
        radius = math.sqrt(32 / (step.depth + 1))
        slope = mlp_slope(block.mlp, radius, map_norm)
        assert f == pytest.approx(slope * float(block.mlp_scale.detach().abs().max()) / math.sqrt(step.depth + 1))
        both = (1 + a) * (1 + f) if step.form == "sequential" else 1 + a + f
        assert terms["product"] == pytest.approx(float(block.resid_mix[0].detach().abs().max()) * both)
        forms.add(step.form)
    assert forms == ({"sequential"} if lanes is None else {"sequential", "parallel"})


def test_a_block_moves_no_further_than_its_product_when_norms_and_probabilities_are_held():
    """The block's own map with rms held at one: attention of fixed probabilities, the MLP on its sphere."""
    settings = {"num_heads": 4, "num_kv_heads": 2, "rope": Rotary(dims=4, base=1e4), "exclude": None, "gate": None}
    model = model_of(attention=partial(CausalSelfAttention, **settings), layer_scale=False)
    block, step = model.blocks[1], model.plan.passes[1]
    bound = block_terms(model, step, map_norm)["product"]
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(1, 9, heads, 8, generator=generator) for heads in (4, 2))
    base = rms_norm(torch.randn(1, 9, 32, generator=generator))

    def held(u, n):
        """u: the stream [1, 9, 32]; n: the place on the sphere where the MLP is."""
        v = block.attn.c_v(u).unflatten(-1, (2, 8))
        w = u + block.attn_scale * block.attn.proj(reference(q, k, v, None).flatten(2))
        slope = torch.autograd.functional.jvp(lambda x: block.mlp(x, 0, PLAIN), n, w)[1]
        return w + block.mlp_scale * slope

    with torch.no_grad():
        moved = torch.randn(1, 9, 32, generator=generator)
    out = held(block.resid_mix[0] * moved, base)
    assert float(out.norm(dim=-1).max().detach()) <= bound * float(moved.norm(dim=-1).max())


def test_recurrence_counts_the_pass_with_most_and_terms_have_the_names_of_blocks():
    model = model_of(num_loops=2)
    plain = named_terms(model)
    model.set_plan("looped")
    looped = named_terms(model)
    for term in ("attention", "mlp", "product"):
        assert set(plain[term]) == set(looped[term]) == {"0", "1", "2", "3"}
        for name, value in looped[term].items():
            every = [block_terms(model, step, map_norm)[term] for step in model.plan.passes if str(step.block) == name]
            assert value == pytest.approx(max(every)) and math.isfinite(value)
    assert plain["temperature"] == 1.0 and plain["logit_multiplier"] == 1.0


def test_every_matrix_is_there_and_no_scale():
    model = model_of(gate=partial(HeadGate, width=12, scale=0.5, init_std=0.1))
    found = singular_values(model)
    assert {"tok_emb.weight", "blocks.0.attn.gate.attn_gate_w", "blocks.3.mlp.proj.weight"} <= set(found)
    scales = {"skip_weights", "skip_gates"} | {f"blocks.{layer}.resid_mix" for layer in range(4)}
    assert set(found) == {name for name, one in model.named_parameters() if one.ndim == 2} - scales
    for name, value in found.items():
        expected = torch.linalg.matrix_norm(model.get_parameter(name).detach(), 2)
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_terms_without_a_formula_have_no_number():
    wide = {"num_heads": 2, "num_kv_heads": 1, "rope": Rotary(dims=4, base=1e4), "exclude": None, "gate": None}
    differing = named_terms(model_of(attention=partial(CausalSelfAttention, **wide), differential=Differential()))
    assert set(differing["attention"].values()) == set(differing["product"].values()) == {None}
    assert all(value > 0.0 for value in differing["mlp"].values())
    smeared = named_terms(model_of(mlp_smear=MlpSmears(share=0.5, within="row")))
    assert set(smeared["mlp"].values()) == {None} and all(smeared["attention"].values())
    lanes = named_terms(model_of(lanes=partial(TwoLane, start_layer=2, final_lane="mean")))
    assert lanes["product"]["0"] is not None and lanes["product"]["3"] is None


def test_an_exclusion_that_adds_counts():
    settings = {"num_heads": 4, "num_kv_heads": 2, "rope": Rotary(dims=4, base=1e4), "gate": None}
    terms = []
    for alpha in (0.0, -2.0, 2.0):
        exclude = partial(gated_own_value, last=None)
        model = tiny_model(attention=partial(CausalSelfAttention, exclude=exclude, **settings))
        with torch.no_grad():
            for block in model.blocks:
                block.attn.proj.weight.copy_(torch.eye(32))
                block.attn.exclude.xsa_alpha.fill_(alpha)
        terms.append(named_terms(model)["attention"]["0"])
    assert terms[1] == pytest.approx(terms[0] * (1.0 + math.tanh(2.0))) and terms[2] == pytest.approx(terms[0])


def test_a_linear_map_of_zeros_ends_a_path():
    """As the projections begin: then the block is the identity, by its terms too."""
    depth = Depth(num_layers=2, loop_start=0, loop_end=0, num_loops=0, skips=False)
    found = named_terms(tiny_model(depth=depth))
    assert set(found["attention"].values()) == set(found["mlp"].values()) == {0.0}
    assert set(found["product"].values()) == {1.0}

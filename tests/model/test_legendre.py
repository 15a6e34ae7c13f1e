"""Matrices as Legendre series over depth: the formula, what is shared and saved, adapters and quantisation."""

import copy

import pytest
import torch

from pgolf.model.block import WithoutAttention
from pgolf.model.context import Context
from pgolf.model.equilibrium import RevDEQ
from pgolf.model.flops import flops_per_token
from pgolf.model.legendre import Legendre, Series
from pgolf.model.plan import Depth
from pgolf.model.repeats import OwnMlp
from pgolf.model.roles import constant, initialise, orthogonal, parameter_roles
from pgolf.quant.hessian import HessianCollector
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def model_of(legendre, scramble=0.2, **parts):
    depth = Depth(num_layers=5, loop_start=1, loop_end=2, num_loops=1, skips=True)
    return tiny_model(scramble=scramble, num_layers=5, depth=depth, legendre=legendre, **parts)


def shared(groups=((0, 3),), attention_terms=3, mlp_terms=2):
    return Legendre(groups=[list(group) for group in groups], attention_terms=attention_terms, mlp_terms=mlp_terms)


def test_a_matrix_is_its_legendre_series():
    """P_0 = 1, P_1 = t, P_2 = (3 t^2 - 1) / 2, P_3 = (5 t^3 - 3 t) / 2 at t = -1, -1/2, 0, 1/2, 1."""
    series = Series((6, 4), 5, 4, orthogonal())
    initialise(series, 0)
    with torch.no_grad():
        series.scale.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0, 3.0]))
    for layer, t in enumerate((-1.0, -0.5, 0.0, 0.5, 1.0)):
        weights = (1.0, t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2)
        expected = sum(weight * series.get_parameter(f"c{term}.weight") for term, weight in enumerate(weights))
        torch.testing.assert_close(series.matrix(layer), series.scale[layer] * expected)


def test_coefficients_begin_smaller_from_term_to_term_and_output_projections_at_zero():
    series = Series((400, 300), 9, 3, orthogonal())
    initialise(series, 0)
    for term in range(3):
        assert float(series.get_parameter(f"c{term}.weight").detach().std()) == pytest.approx(0.5**term / 20, rel=0.02)
    model = model_of(shared(), scramble=0.0)
    zeros = [name for name, value in model.series.named_parameters() if not value.any()]
    assert zeros == [
        *(f"0_3.attn_proj.c{term}.weight" for term in range(3)),
        *(f"0_3.mlp_proj.c{term}.weight" for term in range(2)),
    ]
    model.logits(model(TOKENS)).square().mean().backward()
    assert model.series["0_3"]["mlp_proj"].c1.weight.grad.any()  # a zero product whose other factor is not


def with_matrices(model):
    """The same model with a matrix of its own in every layer."""
    plain = model_of(None)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("series.")}
    for name, parts in model.series.items():
        first, last = map(int, name.split("_"))
        for key, series in parts.items():
            for index, layer in enumerate(range(first, last + 1)):
                state[f"blocks.{layer}.{key.replace('_', '.', 1)}.weight"] = series.matrix(index)
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_a_model_of_series_is_the_model_of_their_matrices(plan):
    model = model_of(shared())
    plain = with_matrices(model)
    for one in (model, plain):
        one.set_plan(plan)
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    assert flops_per_token(model, model.plan, 64) == flops_per_token(plain, plain.plan, 64)
    model(TOKENS).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.series.parameters())


def test_the_artifact_holds_the_coefficients_alone():
    model, plain = model_of(shared(), scramble=0.0), model_of(None, scramble=0.0)
    names = set(model.state_dict())
    assert not any(name.startswith(("blocks.0.attn.c_q", "blocks.3.mlp.fc")) for name in names)
    assert "blocks.4.mlp.fc.weight" in names and parameter_roles(model)["series.0_3.mlp_fc.c1.weight"] == "matrix"
    for name in names & set(plain.state_dict()):
        assert torch.equal(model.state_dict()[name], plain.state_dict()[name])
    attention, mlp = (2 * 32 * 32 + 2 * 32 * 16), 2 * 32 * 64
    saved = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in model.parameters())
    assert saved == (4 - 3) * attention + (4 - 2) * mlp - 4 * 6
    assert {name for name, role in parameter_roles(model).items() if role == "matrix"} <= set(model.calibration_sites())


def test_hessians_of_coefficients_add_up_over_the_layers_of_the_group():
    model = model_of(shared())
    name = "series.0_3.mlp_fc.c1.weight"
    seen = []
    for layer in range(4):
        model.blocks[layer].mlp.fc.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].flatten(0, 1))
        )
    with torch.no_grad(), HessianCollector({name: model.calibration_sites()[name]}) as collector:
        model(TOKENS)
    scale, places = model.series["0_3"]["mlp_fc"].scale.detach(), torch.linspace(-1, 1, 4)
    expected = sum((scale[layer] * places[layer]) ** 2 * x.T @ x for layer, x in enumerate(seen))
    torch.testing.assert_close(collector.result(1)[name].hessian, expected, rtol=1e-4, atol=1e-4)


def test_copies_are_independent_and_load():
    model = model_of(shared())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.series["0_3"]["mlp_fc"].c0.weight.mul_(2.0)
    assert not torch.allclose(model(TOKENS), other(TOKENS))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), other(TOKENS))


def test_adapters_attach_as_ever():
    model = model_of(shared())
    settings = LoraSettings(
        rank=2, alpha=2.0, targets=["q", "v", "mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-8, weight_decay=0.0
    )
    adapters = BatchedLora(model, 2, settings, 0, "test")
    assert torch.equal(model(TOKENS, Context(adapters=adapters)), model(TOKENS))
    model(TOKENS, Context(adapters=adapters)).square().sum().backward()
    assert adapters.up["2:v"].grad.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": [(0, 5)]}, "name layer 5, but the model has 5 layers"),
        ({"groups": [(0, 2)]}, "would save nothing"),
        ({"groups": [(0, 3), (3, 4)]}, "that no other has"),
        ({"groups": [(3, 0)]}, "must be"),
        ({"groups": []}, "groups is empty"),
        ({"mlp_terms": 0}, "at least 1"),
        ({"repeat_mlp": OwnMlp}, "MLPs of repeated visits"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    parts = {name: settings.pop(name) for name in ("repeat_mlp",) if name in settings}
    with pytest.raises(ValueError, match=message):
        model_of(shared(**settings), **parts)


def test_layers_of_different_shapes_share_nothing():
    with pytest.raises(ValueError, match="no matrices of the same shapes"):
        model_of(shared(), without_attention=WithoutAttention(layers=[0]))


def test_layers_that_start_otherwise_share_nothing():
    """The output projections of a fixed point start orthogonal, since the norm of zero has no direction."""
    equilibrium = RevDEQ(layer=1, iterations=2, beta=0.35)
    with pytest.raises(ValueError, match=r"attn.proj starts at zero in some of the layers 0\.\.3 and not in others"):
        model_of(shared(), equilibrium=equilibrium)
    model_of(shared(), equilibrium=RevDEQ(layer=4, iterations=2, beta=0.35))


def test_zero_stays_zero():
    series = Series((3, 2), 4, 2, constant(0.0))
    initialise(series, 0)
    assert not series.matrix(1).any()

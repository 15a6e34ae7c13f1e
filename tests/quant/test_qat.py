"""Rounded weights in training: the values of the export, for every scheme, and only while a step is taken."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgolf.model.gpt import GPT
from pgolf.model.roles import parameter_roles
from pgolf.optim.schedule import Constant, Position, Schedule, Warmdown
from pgolf.quant import container
from pgolf.quant.compress import Compressor
from pgolf.quant.encoded import decode
from pgolf.quant.hessian import Calibration, collect_hessians, collect_row_moments
from pgolf.quant.qat import LateQat, WeightRounding
from pgolf.quant.qat_rounding import rounded
from pgolf.quant.rotations import InternalOnly, Online
from pgolf.quant.schemes import (
    Binary,
    Float8,
    Float32,
    Gptq,
    Half,
    HessianClip,
    Int8Baseline,
    Int8Rows,
    PercentileGptq,
    PercentileRows,
    Scheme,
    SensitivityGptq,
    Ternary,
    TrellisGptq,
)
from tests.support import tiny_model

TOKENS = torch.randint(64, (2, 33), generator=torch.Generator().manual_seed(5))

BLIND: dict[str, Scheme] = {
    "gptq": Gptq(bits=6, clip_sigmas=12.85),
    "gptq that clips": Gptq(bits=3, clip_sigmas=1.0),
    "percentile": PercentileRows(bits=6),
    "percentile gptq": PercentileGptq(bits=5, least_clip=0.0),
    "int8 rows": Int8Rows(),
    "int8 baseline": Int8Baseline(),
    "ternary": Ternary(group_size=16),
    "binary": Binary(group_size=16),
    "float8": Float8(),
    "hessian clip": HessianClip(bits=6, clip_sigmas=12.85),
}


@pytest.mark.parametrize("name", BLIND)
@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 20),
    cols=st.integers(2, 40),
    scale=st.sampled_from([1e-3, 0.05, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_training_rounds_as_the_export_does(name: str, rows: int, cols: int, scale: float, seed: int) -> None:
    weight = scale * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    weight[0, : cols // 2] = 0.0
    scheme = BLIND[name]
    given_ = Calibration(torch.eye(cols)) if scheme.needs_hessian else None  # without error feedback
    expected = decode(scheme.quantise(weight, given_)).float()
    assert torch.equal(rounded(scheme, weight, None), expected)


@pytest.mark.parametrize("scheme", [SensitivityGptq(scale=0.05), SensitivityGptq(scale=0.05, granularity="tensor")])
def test_steps_that_were_learned_are_those_of_the_export(scheme: SensitivityGptq) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, moments = torch.randn(12, 20, generator=generator), torch.rand(12, generator=generator) + 0.1
    known = Calibration(torch.eye(20), 1.0, moments)
    expected = decode(scheme.quantise(weight, known))
    assert torch.equal(rounded(scheme, weight, scheme.base_steps(weight, known)), expected)


def test_a_trellis_is_approximated_by_its_step() -> None:
    generator = torch.Generator().manual_seed(2)
    weight, scheme = torch.randn(64, 32, generator=generator), TrellisGptq(scale=0.3)
    known = Calibration(torch.eye(32), 1.0, torch.ones(64))
    near, exact = (
        float((one - weight).norm())
        for one in (
            rounded(scheme, weight, scheme.base_steps(weight, known)),
            decode(scheme.quantise(weight, known)),
        )
    )
    assert 1.0 < near / exact < 1.25


def rule(**changes: Any) -> LateQat:
    settings: dict[str, Any] = {"below_lr_scale": None, "at_fraction": 0.5, "min_steps": 1, "roles": ["matrix"]}
    return LateQat(**{**settings, **changes})


def compressor(**changes: Any) -> Compressor:
    settings: dict[str, Any] = {"matrix": Gptq(bits=3, clip_sigmas=3.0), "embedding": Int8Rows(), "head": None}
    settings |= {"scalar": Float32(), "gate": Half(), "coder": "zlib", "calibration_batches": 1}
    return Compressor(**{**settings, "min_quantised_elements": 1, "qat": rule(), **changes})


def calibration_of(model: GPT, names: list[str], with_moments: list[str]) -> dict[str, Calibration]:
    """On TOKENS."""
    sites = {name: site for name, site in model.calibration_sites().items() if name in names}
    known = collect_hessians(sites, [lambda: model.logits(model(TOKENS[:, :-1]))])
    weights = {name: model.get_parameter(name) for name in with_moments}
    return collect_row_moments(weights, [lambda: loss_of(model)], known) if weights else known


def loss_of(model: GPT) -> Tensor:
    """Mean cross entropy on TOKENS."""
    logits = model.logits(model(TOKENS[:, :-1]))
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())


def rounding_of(model: GPT, **changes: Any) -> WeightRounding:
    """The rounding of a compressor with `changes`."""
    made = compressor(**changes).training(model, partial(calibration_of, model))
    assert made is not None
    return made


def exported(model: GPT, **changes: Any) -> dict[str, Tensor]:
    """The weights that quantising with an identity for every Hessian gives back."""
    tool, state = compressor(**changes), model.state_dict()
    choices = tool.chooser.choose(
        {name: tuple(one.shape) for name, one in state.items()}, parameter_roles(model), set()
    )
    known = {one.name: Calibration(torch.eye(state[one.name].shape[-1])) for one in choices if one.role == "matrix"}
    return {
        one.name: decode(one.scheme.quantise(state[one.name], known.get(one.name)))
        for one in choices
        if one.scheme is not None
    }


def test_inside_a_step_the_model_is_the_exported_one_and_its_gradient_goes_straight_through() -> None:
    model, other = (tiny_model(scramble=0.2) for _ in range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other.load_state_dict(
        before | {k: v for k, v in exported(model).items() if k.endswith("weight") and "tok" not in k}
    )
    with rounding_of(model).applied():
        loss = loss_of(model)
        loss.backward()
    expected = loss_of(other)
    expected.backward()
    assert torch.equal(loss, expected) and float(loss.detach()) != float(loss_of(model).detach())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        wanted = other.get_parameter(name).grad
        assert (parameter.grad is None) == (wanted is None)
        assert wanted is None or torch.equal(parameter.grad, wanted)


def test_an_error_inside_a_step_brings_the_weights_back() -> None:
    model = tiny_model(scramble=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="broken"), rounding_of(model).applied():
        raise RuntimeError("broken")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_compiled_forward_changes_without_being_compiled_again() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = tiny_model(scramble=0.2)
    compiled, rounding = torch.compile(loss_of, backend="eager"), rounding_of(model)
    plain = compiled(model)
    with rounding.applied():
        inside, exact = compiled(model), loss_of(model)
        inside.backward()
    torch.testing.assert_close(inside, exact, rtol=1e-5, atol=1e-6)
    assert abs(float(inside.detach() - plain.detach())) > 1e-4
    torch.testing.assert_close(compiled(model), plain, rtol=0, atol=0)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_tied_embedding_is_rounded_at_both_its_ends() -> None:
    model = tiny_model(scramble=0.2)
    rounding = rounding_of(model, qat=rule(roles=["embedding"]))
    assert list(rounding.schemes) == ["tok_emb.weight"] and rounding.description == "1 x int8 rows"
    with rounding.applied():
        assert torch.equal(model.tok_emb.weight, exported(tiny_model(scramble=0.2))["tok_emb.weight"])


def test_rotated_weights_are_rounded_where_they_will_be_quantised(tmp_path: Path) -> None:
    model = tiny_model(scramble=0.2)
    turned = Online(seed=42, sites=["attn_in", "attn_proj_in", "mlp_in", "mlp_proj_in"])
    values = rounding_of(model, rotation=turned).values()
    tool, path = compressor(rotation=turned), tmp_path / "artifact.pgolf"
    known = {name: Calibration(torch.eye(one.shape[1])) for name, one in values.items()}
    tool.compress(model.state_dict(), parameter_roles(model), known, {}, path)
    loaded = container.load(path)[0]
    for name, value in values.items():
        error = (model.state_dict()[name] - value).abs().max()
        assert float((loaded[name] - value).abs().max()) < 0.05 * float(error)


def test_a_rotation_inside_the_model_cannot_be_foreseen() -> None:
    with pytest.raises(ValueError, match=r"choose quant/rotation=online or none"):
        rounding_of(tiny_model(), rotation=InternalOnly(seed=1))


@pytest.mark.parametrize("scheme", [SensitivityGptq(), TrellisGptq(), HessianClip(bits=6, clip_sigmas=12.0)])
def test_steps_are_learned_when_rounding_begins_and_kept_by_checkpoints(scheme: Scheme) -> None:
    model = tiny_model(scramble=0.2)
    made = rounding_of(model, matrix=scheme, target_bytes=20_000)
    made.begin()
    assert made.factor != 1.0 and set(made.steps) == set(made.schemes)
    again = rounding_of(model, matrix=scheme, target_bytes=20_000)
    again.load_state_dict(made.state_dict())
    for (name, one), other in zip(made.values().items(), again.values().values(), strict=True):
        assert torch.equal(one, other)
        error = float((one - model.get_parameter(name)).norm() / model.get_parameter(name).norm())
        assert 0.0 < error < 0.5


def test_what_another_process_learned_is_taken_over() -> None:
    model = tiny_model(scramble=0.2)
    made = compressor(matrix=SensitivityGptq(), target_bytes=20_000).training(model, lambda names, moments: {})
    assert made is not None
    made.begin()
    assert made.steps == {}


def position(fraction: float) -> Position:
    return Position(int(1000 * fraction), fraction)


class Rising(Constant):
    """From 0 to 1 over the first tenth, then constant."""

    def at(self, position: Position) -> float:
        return min(1.0, 10 * position.fraction)


@pytest.mark.parametrize(
    ("rule_", "schedule", "first"),
    [
        (rule(), Constant(value=1.0), 0.5),
        (rule(at_fraction=0.0), Constant(value=1.0), 0.0),
        (rule(at_fraction=None, below_lr_scale=0.15), Warmdown(fraction=0.5, floor=0.0), 0.93),
        (rule(at_fraction=0.9, below_lr_scale=0.15), Warmdown(fraction=0.5, floor=0.0), 0.9),
        (rule(at_fraction=None, below_lr_scale=0.15), Rising(value=1.0), None),
        (rule(at_fraction=None, below_lr_scale=0.15), Constant(value=0.1), 0.0),
        (rule(at_fraction=None, below_lr_scale=0.15), Warmdown(fraction=0.5, floor=0.2), None),
    ],
)
def test_when_it_comes_on(rule_: LateQat, schedule: Schedule, first: float | None) -> None:
    due = [index / 100 for index in range(100) if rule_.due(position(index / 100), schedule)]
    assert (due[0] if due else None) == first
    assert due == [index / 100 for index in range(100) if first is not None and index / 100 >= first]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"at_fraction": None}, "never comes on"),
        ({"at_fraction": 1.0}, "below 1"),
        ({"below_lr_scale": 0.0}, "above 0"),
        ({"min_steps": 0}, "at least 1"),
        ({"roles": ["matrices"]}, "no role 'matrices'"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rule(**wrong)


def test_rounding_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rounds nothing"):
        rounding_of(tiny_model(), matrix=Half())

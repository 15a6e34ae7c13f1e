"""Rounding that grows, that the gradient goes through, that is noise; and the export that is what training saw."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.model.roles import parameter_roles
from pgolf.optim.schedule import Constant, Position
from pgolf.quant import container
from pgolf.quant.qat import LateQat, Noisy, Qat, SoftRound
from pgolf.quant.qat_rounding import rounded
from pgolf.quant.rotations import Online
from pgolf.quant.schemes import Binary, Float32, Gptq, Half, Int8Rows, PercentileRows, Scheme, Ternary
from tests.quant.round_trip import compressor, exported_alone, logits, ramp, rounding_of, trained_alone
from tests.support import run_ranks, tiny_model

LATE: dict[str, Any] = {"below_lr_scale": None, "at_fraction": 0.0, "min_steps": 1, "roles": ["matrix"]}
SIMPLE: dict[str, Any] = {"scalar": Float32(), "embedding": Float32(), "matrix": Gptq(bits=4, clip_sigmas=3.0)}
FIXED_POINTS: dict[str, Scheme] = {
    "ternary": Ternary(group_size=8, scale="float32"),
    "ternary, float16": Ternary(group_size=8),
    "ternary, 0.7 of the whole": Ternary(group_size=0, threshold=0.7, scale="float32"),
    "binary": Binary(group_size=8),
    "int6 of the largest": PercentileRows(bits=6, percentiles=[1.0], least_clip=0.0),
    "int8 rows": Int8Rows(),
    "float16": Half(),
}


def late(rule: Qat, **changes: Any) -> Any:
    """A rounding of the matrices of a small model, and the model."""
    model = tiny_model(scramble=0.2)
    return rounding_of(model, compressor(**{**SIMPLE, "rules": {}, "qat": rule, **changes})), model


def test_the_export_is_what_the_last_step_saw(tmp_path: Path) -> None:
    model, tool = tiny_model(scramble=0.2), compressor()
    rounding = rounding_of(model, tool)
    assert rounding.description == "1 x int8 rows, 16 x percentile int6, 8 x ternary"
    trained_alone(model, rounding)
    plain = logits(model)
    with rounding.applied(5):
        seen = logits(model)
    path = tmp_path / "artifact.pgolf"
    loaded = exported_alone(model, tool, path)
    assert torch.equal(logits(loaded), seen) and not torch.equal(seen, plain)
    for name, value in rounding.values().items():
        assert torch.equal(loaded.get_parameter(name), value)
    mlp = loaded.blocks[0].mlp.fc.weight.detach().reshape(-1)[:48]
    assert len(mlp.unique()) == 3 and float(mlp.min()) == -float(mlp.max())
    again = exported_alone(loaded, tool, tmp_path / "again.pgolf")  # rounding what is rounded changes nothing
    assert torch.equal(logits(again), seen)
    assert path.read_bytes() == (tmp_path / "again.pgolf").read_bytes()


def test_every_process_has_the_weights_that_all_have_trained(tmp_path: Path) -> None:
    """The published mistake: only the first process loaded the file, and the score was of other weights."""
    run_ranks(Path(__file__).parent / "round_trip.py", 2, tmp_path)
    one, other = torch.load(tmp_path / "found.pt", weights_only=True)
    assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
    assert torch.equal(one["seen"], one["loaded"]) and torch.equal(one["loaded"], other["loaded"])
    assert torch.equal(other["seen"], other["loaded"])


@pytest.mark.parametrize("name", FIXED_POINTS)
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 30), scale=st.sampled_from([0.05, 1.0]), seed=st.integers(0, 2**31))
def test_rounding_twice_is_rounding_once(name: str, rows: int, cols: int, scale: float, seed: int) -> None:
    weight = scale * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    weight[0, : cols // 2] = 0.0
    weight[:, -1] = scale  # steps are float16: below 6e-5 those of a row are no longer exact
    once = rounded(FIXED_POINTS[name], weight)
    assert torch.equal(rounded(FIXED_POINTS[name], once), once)


def test_without_the_shrinkage_fix_it_is_not() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    scheme = Ternary(keep_mean=False, scale="float32")
    once = rounded(scheme, weight)
    assert not torch.equal(rounded(scheme, once), once)  # the mean magnitude shrank by the share of zeros


def test_it_grows_by_steps() -> None:
    rule = ramp(from_step=5, ramp_steps=4, min_steps=5)
    assert [rule.share(step) for step in (0, 1, 2, 4, 9)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [rule.due(Position(step, 0.9), Constant(value=1.0)) for step in (4, 5, 9)] == [False, True, True]
    assert ramp(ramp_steps=0).share(0) == 1.0
    model, tool = tiny_model(scramble=0.2), compressor(qat=rule)
    rounding, before = rounding_of(model, tool), {n: v.clone() for n, v in tiny_model(scramble=0.2).named_parameters()}
    values = rounding.values()
    for step, share in ((1, 0.25), (2, 0.5), (4, 1.0)):
        with rounding.applied(step):
            for name, value in values.items():
                expected = before[name] + share * (value - before[name])
                torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_a_soft_staircase_and_its_slope() -> None:
    rule = SoftRound(**LATE, sharpness_start=1.0, sharpness_end=16.0, ramp_steps=10)
    rounding, model = late(rule)
    name = "blocks.0.mlp.fc.weight"
    weight = model.get_parameter(name)
    step = (3.0 * weight.detach().std(dim=1) / 7).half().float()[:, None]
    for steps_on, sharpness in ((0, 1.0), (5, 8.5), (20, 16.0)):
        model.zero_grad()
        x = weight.detach() / step
        rise = torch.sigmoid(sharpness * (x - x.floor() - 0.5))
        inside = (x.floor() + rise).abs() < 7
        with rounding.applied(steps_on):
            expected = (x.floor() + rise).clamp(-7, 7) * step
            torch.testing.assert_close(weight.detach(), expected, rtol=1e-5, atol=1e-6)
            (weight * 3.0).sum().backward()
        slope = sharpness * rise * (1 - rise) * inside
        torch.testing.assert_close(weight.grad, 3.0 * slope, rtol=1e-3, atol=1e-4)


def test_noise_is_as_wide_as_a_step_and_new_every_time() -> None:
    rounding, model = late(Noisy(**LATE, seed=1))
    other, _ = late(Noisy(**LATE, seed=1))
    name = "blocks.1.mlp.fc.weight"
    weight = model.get_parameter(name)
    own, step = weight.detach().clone(), (3.0 * weight.detach().std(dim=1) / 7).half().float()[:, None]
    with rounding.applied(3):
        noise = (weight.detach() - own) / step
        (weight * 2.0).sum().backward()
    assert torch.equal(weight.grad, torch.full_like(own, 2.0))  # straight through
    free = own.abs() < 6 * step
    assert float(noise[free].abs().max()) <= 0.5 + 1e-4 and abs(float(noise[free].std()) - 12**-0.5) < 0.01
    assert torch.equal(other.felt(3, {name: own})[name], rounding.felt(3, {name: own})[name])
    assert not torch.equal(other.felt(4, {name: own})[name], rounding.felt(3, {name: own})[name])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"matrix": Gptq(bits=6, clip_sigmas=12.85)}, "error feedback"),
        ({"rotation": Online(seed=1, sites=["attn_in"])}, "choose quant/rotation=none"),
        ({"scalar": Half(), "qat": ramp(roles=["matrix", "embedding"])}, "add scalar to quant.qat.roles"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rounding_of(tiny_model(), compressor(**changes))


def test_half_precision_is_seen_where_the_export_is_promised(tmp_path: Path) -> None:
    model, tool = tiny_model(scramble=0.2), compressor(scalar=Half())
    rounding = rounding_of(model, tool)
    tool.compress(model.state_dict(), parameter_roles(model), {}, {}, tmp_path / "artifact.pgolf")
    loaded = container.load(tmp_path / "artifact.pgolf")[0]
    assert all(torch.equal(loaded[name], value) for name, value in rounding.values().items())


def test_what_has_no_steps_cannot_be_softened() -> None:
    rule = Noisy(**{**LATE, "roles": ["matrix"]}, seed=1)
    rounding, _ = late(rule, matrix=Ternary())
    with pytest.raises(ValueError, match="no steps that training could soften"), rounding.applied(0):
        pass


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ramp(min_steps=3), "must be above ramp_steps=3"),
        (lambda: ramp(from_step=-1), "must not be negative"),
        (lambda: ramp(roles=["matrices"]), "no role 'matrices'"),
        (lambda: SoftRound(**LATE, sharpness_start=2.0, sharpness_end=1.0, ramp_steps=1), "at most"),
        (lambda: LateQat(**{**LATE, "at_fraction": None}), "never comes on"),
    ],
)
def test_impossible_settings_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()

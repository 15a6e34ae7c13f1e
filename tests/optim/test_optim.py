"""Muon, the optimisers by role, schedules and averaging."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.model.gates import HeadGate
from pgolf.optim.muon import POLAR_EXPRESS, STOCK, Muon, orthogonalise
from pgolf.optim.roles import RoleOptimizers
from pgolf.optim.schedule import MomentumRamp, Warmdown
from tests.support import GOLDEN, tiny_model

PLAIN = {"nesterov": True, "row_normalise": False, "newton_schulz_steps": 5, "coefficients": "stock"}


def adam(lr: float) -> partial:
    return partial(torch.optim.AdamW, lr=lr)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 16, 6), (2, 6, 16)])
def test_polar_express_drives_singular_values_to_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(x, 8, POLAR_EXPRESS))
    assert singular.min() > 0.8 and singular.max() < 1.2


def test_muon_without_row_normalisation_is_torchs():
    weights = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(12, 20)]
    ours = [torch.nn.Parameter(weight.clone()) for weight in weights]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, **PLAIN)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True, ns_steps=5, eps=1e-7)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for x, y in zip(ours, theirs, strict=True):
            x.grad = torch.randn(x.shape, generator=generator)
            y.grad = x.grad.clone()
        a.step()
        b.step()
    for start, x, y in zip(weights, ours, theirs, strict=True):
        # torch's iteration runs in bf16, and its buffer is an average (the same direction)
        assert (x - y).norm() <= 0.03 * (y - start).norm()


def test_muon_by_its_formula_with_row_normalisation():
    weight, gradient = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 4, dtype=torch.float64)
    parameter = torch.nn.Parameter(weight.clone())
    muon = Muon(
        [parameter],
        lr=0.1,
        momentum=0.5,
        weight_decay=0.2,
        nesterov=True,
        row_normalise=True,
        newton_schulz_steps=5,
        coefficients="polar_express",
    )
    buffer = torch.zeros_like(weight)
    for _ in range(2):
        parameter.grad = gradient.clone()
        muon.step()
        buffer = 0.5 * buffer + gradient
        update = gradient + 0.5 * buffer
        update = update / update.norm(dim=1, keepdim=True)
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * 2**0.5 * orthogonalise(update[None], 5, POLAR_EXPRESS)[0]
    torch.testing.assert_close(parameter.detach(), weight)


@pytest.mark.skipif(not (GOLDEN / "muon_ns.npz").exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize(("variant", "coefficients"), [("std1736", STOCK), ("polar1855", POLAR_EXPRESS)])
@pytest.mark.parametrize("steps", [5, 10])
def test_newton_schulz_parity(variant, coefficients, steps):
    data = np.load(GOLDEN / "muon_ns.npz")
    for index in range(6):
        matrices = torch.from_numpy(data[f"G{index}"])
        batch = matrices if matrices.ndim == 3 else matrices[None]
        expected = torch.from_numpy(data[f"{variant}_fp32_s{steps}_{index}"]).view_as(batch)
        got = orthogonalise(batch, steps, coefficients)
        assert (got - expected).norm() <= 2e-5 * expected.norm(), index


@pytest.mark.skipif(not (GOLDEN / "muon_1736_rn1_fp32.npz").exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize(
    "name", ["muon_1736_rn1_fp32", "muon_1736_rn0_fp32", "muon_1855_rn1_fp32", "muon_1855_rn0_fp32"]
)
def test_muon_parity_with_the_published_optimiser(name):
    """Banks of the published scripts, matrix by matrix; fp32, relative error 1e-5."""
    data = np.load(GOLDEN / f"{name}.npz")
    meta = json.loads(str(data["meta_json"]))
    banks = [
        [torch.nn.Parameter(torch.from_numpy(matrix.copy())) for matrix in data[f"p{bank}_init"]] for bank in range(3)
    ]
    muon = Muon(
        [matrix for bank in banks for matrix in bank],
        lr=0.0,
        momentum=0.0,
        weight_decay=meta["ctor"]["weight_decay"],
        nesterov=True,
        row_normalise=meta["ctor"]["row_normalize"],
        newton_schulz_steps=meta["ctor"]["backend_steps"],
        coefficients="polar_express" if "1855" in name else "stock",
    )
    for step, (lr, momentum) in enumerate(zip(meta["lr_per_step"], meta["momentum_per_step"], strict=True)):
        muon.param_groups[0] |= {"lr": lr, "momentum": momentum}
        for bank, matrices in enumerate(banks):
            for matrix, gradient in zip(matrices, data[f"g{bank}_t{step}"], strict=True):
                matrix.grad = torch.from_numpy(gradient.copy())
        muon.step()
        for bank, matrices in enumerate(banks):
            expected = torch.from_numpy(data[f"p{bank}_after_t{step}"])
            got = torch.stack([matrix.detach() for matrix in matrices])
            assert (got - expected).norm() <= 1e-5 * expected.norm(), (step, bank)


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9, weight_decay=0.0, **PLAIN)


def optimisers(model, **changes):
    roles = {
        "matrix": partial(Muon, lr=0.02, momentum=0.95, weight_decay=0.0, **PLAIN),
        "embedding": adam(0.01),
        "scalar": adam(0.02),
        "head": None,
        "gate": None,
    }
    return RoleOptimizers(model, **{**roles, **changes})


def test_every_parameter_belongs_to_one_optimiser():
    model = tiny_model()
    owned = [id(p) for optimiser in optimisers(model) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def test_a_role_without_an_optimiser_is_refused():
    with pytest.raises(ValueError, match="optim.gate is absent.*4 parameters"):
        optimisers(tiny_model(gate=partial(HeadGate, width=12, scale=1.0, init_std=0.0)))
    optimisers(tiny_model(gate=partial(HeadGate, width=12, scale=1.0, init_std=0.0)), gate=adam(0.1))


def test_schedule_scales_learning_rates_from_their_base_values():
    optimizers = optimisers(tiny_model())
    optimizers.schedule(0.5, 0.7)
    optimizers.schedule(0.25, 0.8)
    matrix = optimizers.optimizers["matrix"].param_groups[0]
    assert (matrix["lr"], matrix["momentum"]) == (0.02 * 0.25, 0.8)
    assert optimizers.optimizers["scalar"].param_groups[0]["lr"] == 0.02 * 0.25


@given(progress=st.floats(0, 1), fraction=st.floats(0.01, 1), floor=st.floats(0, 1))
def test_warmdown_stays_between_floor_and_one_and_never_rises(progress, fraction, floor):
    schedule = Warmdown(fraction=fraction, floor=floor)
    assert floor <= schedule(progress) <= 1.0
    assert schedule(progress) >= schedule(min(1.0, progress + 0.1)) - 1e-12


def test_schedules_at_hand_worked_points():
    schedule = Warmdown(fraction=0.5, floor=0.1)
    assert [schedule(0.0), schedule(0.5), schedule(0.75), schedule(1.0)] == [1.0, 1.0, 0.5, 0.1]
    ramp = MomentumRamp(start=0.8, end=0.9, steps=10)
    assert [ramp(0), ramp(10), ramp(99)] == [0.8, 0.9, 0.9]
    assert ramp(5) == pytest.approx(0.85)
    with pytest.raises(ValueError, match="fraction"):
        Warmdown(fraction=0.0, floor=0.1)
    with pytest.raises(ValueError, match="steps"):
        MomentumRamp(start=0.8, end=0.9, steps=0)

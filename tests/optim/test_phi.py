"""The golden-ratio scale of the matrices' learning rate."""

import pytest

from pgolf.app import build
from pgolf.model.phi import ALPHA
from pgolf.optim.phi import MatrixRateScale
from pgolf.optim.roles import NameRule
from tests.optim.small import Net, optimisers
from tests.shipped import job


def rates(*overrides, **settings) -> dict[str, set[float]]:
    """Learning rates by role, of a small model whose optimisers are composed."""
    chosen = job("scale=mini", *overrides)
    assert not chosen.refusals
    factory = build.build(chosen.config["optim"], "optim")
    rows = factory(Net(), **settings).table()
    return {role: {row["lr"] for row in rows if row["group"] == role} for role in {row["group"] for row in rows}}


def test_the_matrices_rate_becomes_alpha_phi_and_the_others_stay() -> None:
    plain, scaled = rates("optim.matrix.lr=0.04"), rates("optim.matrix.lr=0.04", "optim/lr_scale=phi")
    assert plain.pop("matrix") == {0.04} and list(scaled.pop("matrix")) == [pytest.approx(ALPHA, rel=1e-15)]
    assert plain == scaled


def test_a_number_multiplies_as_published() -> None:
    assert rates("optim.matrix.lr=0.04", "optim/lr_scale=phi", "optim.lr_scale.scale=0.5")["matrix"] == {0.02}


def test_rules_are_scaled_too() -> None:
    rules = [NameRule(pattern="up.0.weight", options={"lr": 0.01})]
    found = rates("optim.matrix.lr=0.04", "optim/lr_scale=phi", "optim.lr_scale.scale=2", rules=rules)
    assert found["matrix"] == {0.08, 0.02}


def test_the_schedule_multiplies_the_scaled_rate() -> None:
    made = optimisers(Net(), lr_scale=MatrixRateScale(scale=3.0))
    (options,) = made.optimizers["matrix"].param_groups
    base = options["lr"]
    made.schedule(0.5, None)
    assert options["lr"] == base / 2
    unscaled = optimisers(Net()).optimizers["matrix"].param_groups[0]["lr"]
    assert base == pytest.approx(3.0 * unscaled)


def test_a_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="optim.lr_scale.scale=0"):
        MatrixRateScale(scale=0.0)

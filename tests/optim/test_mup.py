"""Width scaling of learning rates and initial values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.optim.mup import WidthScaling, scale_initial_values, width_of
from tests.optim.small import DIM, Net


@given(st.sampled_from(["matrix", "embedding", "head", "scalar", "gate"]), st.integers(1, 4096))
def test_at_the_base_width_nothing_changes(role, width):
    scaling = WidthScaling(base_width=width)
    for kind in ("adam", "muon"):
        assert scaling.lr(role, (7, width), width, kind) == 1.0
    assert scaling.initial(role, width, orthogonal=False) == scaling.logit_multiplier(width) == 1.0


def test_multipliers_of_a_model_four_times_as_wide():
    scaling, shape = WidthScaling(base_width=128), (8, 512)
    adam = {role: scaling.lr(role, shape, 512, "adam") for role in ("matrix", "head", "gate", "embedding", "scalar")}
    assert adam == {"matrix": 0.25, "head": 0.25, "gate": 0.25, "embedding": 1.0, "scalar": 1.0}
    assert scaling.lr("matrix", shape, 512, "muon") == 1.0
    assert scaling.lr("gate", (8, 12), 512, "adam") == 1.0  # twelve inputs at every width
    assert scaling.initial("matrix", 512, orthogonal=False) == 0.5
    assert scaling.initial("matrix", 512, orthogonal=True) == 1.0
    assert scaling.initial("head", 512, orthogonal=True) == scaling.logit_multiplier(512) == 0.25


def test_initial_values_are_scaled_where_they_are_and_no_other_moves():
    plain, scaled = Net().state_dict(), Net()
    scale_initial_values(scaled, WidthScaling(base_width=DIM // 4), orthogonal=False)
    factors = {"head.weight": 0.25, "embedding": 1.0, "gain": 1.0, "gate": 1.0}
    for name, value in scaled.state_dict().items():
        assert torch.equal(value, plain[name] * factors.get(name, 0.5)), name


def test_a_model_without_one_width_is_refused():
    model = Net()
    assert width_of(model) == DIM
    model.roles["embedding"] = "scalar"
    with pytest.raises(ValueError, match="has none"):
        width_of(model)
    with pytest.raises(ValueError, match="base_width=0"):
        WidthScaling(base_width=0)

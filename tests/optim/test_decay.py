"""Forms of weight decay, each by its formula, in Muon's step."""

import pytest
import torch

from pgolf.optim.decay import AfterUpdate, CautiousDecay, HuberDecay, decoupled
from pgolf.optim.muon import Muon
from tests.optim.small import POLAR

LR, RATE = 0.5, 0.1
WEIGHT = torch.tensor([[2.0, -2.0, 0.05], [0.0, -0.05, 3.0]])
UPDATE = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]])


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (decoupled, WEIGHT * (1 - RATE) - LR * UPDATE),
        (AfterUpdate(), (WEIGHT - LR * UPDATE) * (1 - RATE)),
        # two, minus two, three are pulled by the threshold, the small ones by themselves
        (HuberDecay(threshold=0.1), WEIGHT - RATE * torch.tensor([[0.1, -0.1, 0.05], [0.0, -0.05, 0.1]]) - LR * UPDATE),
        # only where the update goes towards zero, too
        (CautiousDecay(), WEIGHT - RATE * torch.tensor([[2.0, 0.0, 0.0], [0.0, -0.05, 0.0]]) - LR * UPDATE),
    ],
)
def test_the_formula(decay, expected):
    weight = WEIGHT.clone()
    decay([weight], [UPDATE], LR, RATE)
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("decay", [AfterUpdate(), HuberDecay(threshold=0.1), CautiousDecay()])
def test_muon_decays_in_this_form(decay):
    """With the update of a Muon without decay, whose directions are the same in the first step."""
    generator = torch.Generator().manual_seed(1)
    begun, gradient = (torch.randn(6, 4, generator=generator) for _ in range(2))
    found = {}
    for name, form, rate in (("plain", None, 0.0), ("form", decay, 0.3), ("usual", None, 0.3)):
        parameter = torch.nn.Parameter(begun.clone())
        parameter.grad = gradient.clone()
        Muon([parameter], lr=0.1, momentum=0.9, weight_decay=rate, decay=form, **POLAR).step()
        found[name] = parameter.detach()
    expected = begun.clone()
    decay([expected], [(begun - found["plain"]) / 0.1], 0.1, 0.1 * 0.3)
    torch.testing.assert_close(found["form"], expected, rtol=1e-5, atol=1e-6)
    assert (found["form"] - found["usual"]).abs().max() > 1e-3


def test_a_threshold_is_positive():
    with pytest.raises(ValueError, match="threshold=0"):
        HuberDecay(threshold=0.0)

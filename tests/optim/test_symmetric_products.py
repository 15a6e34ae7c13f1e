"""Muon by a kernel for symmetric products: the same updates, and where it is not used."""

import pytest
import torch
from torch import nn

from pgolf.optim.muon import Muon

OPTIONS = {
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "nesterov": True,
    "row_normalise": False,
    "newton_schulz_steps": 5,
    "coefficients": "polar_express",
}


class Counting:
    """Plain products that count their calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, base=None, beta=0.0, scale=1.0):
        self.calls.append(tuple(x.shape))
        product = scale * (x @ x.mT)
        return product if base is None else beta * base + product


def matrices():
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 20), (8, 20), (30, 8))]
    for one in made:
        one.grad = torch.randn(one.shape, generator=generator)
    return made


@pytest.mark.parametrize("newton_schulz", ["direct", "gram"])
def test_updates_are_the_same(newton_schulz):
    plain, ours = matrices(), matrices()
    Muon(plain, **OPTIONS, newton_schulz=newton_schulz).step()
    optimizer, products = Muon(ours, **OPTIONS, newton_schulz=newton_schulz), Counting()
    assert optimizer.use(products) == 3
    assert {shape[0] for shape in products.calls} == {1} and len(products.calls) >= 2 * 2  # tried for both shapes
    products.calls.clear()
    optimizer.step()
    assert {shape[0] for shape in products.calls} == {1, 2}  # a bank of two and a bank of one
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "bf16_iteration"])
def test_published_roundings_stay_those_of_plain_products(precision):
    products = Counting()
    plain, ours = matrices(), matrices()
    Muon(plain, **OPTIONS, precision=precision).step()
    optimizer = Muon(ours, **OPTIONS, precision=precision)
    assert optimizer.use(products) == 0
    optimizer.step()
    assert not products.calls and all(torch.equal(a, b) for a, b in zip(plain, ours, strict=True))

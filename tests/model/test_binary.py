"""Linear maps that read signs: their formula, their gradient, and which maps they are."""

import pytest
import torch

from pgolf.model.binary import SignLinear, Xnor
from pgolf.model.context import PLAIN
from pgolf.model.roles import normal, parameter_roles
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def test_signs_times_the_mean_magnitude_of_a_token_and_the_gradient_straight_through():
    linear = SignLinear(6, 4, "matrix", normal(1.0))
    with torch.no_grad():
        linear.weight.copy_(drawn(4, 6))
    x = drawn(2, 5, 6)
    x[0, 0, 0] = 0.0
    x.requires_grad_()
    scale = x.detach().abs().sum(-1, keepdim=True) / 6
    signs = scale * torch.tensor([1.0 if value >= 0 else -1.0 for value in x.detach().flatten()]).view_as(x)
    y = linear(x)
    torch.testing.assert_close(y, signs @ linear.weight.T)
    y.backward(drawn(2, 5, 4))
    torch.testing.assert_close(x.grad, drawn(2, 5, 4) @ linear.weight.detach())
    torch.testing.assert_close(linear.weight.grad, torch.einsum("bto,bti->oi", drawn(2, 5, 4), signs))


@pytest.mark.parametrize(("patterns", "hidden_too"), [(["blocks.*.attn.*", "blocks.*.mlp.fc"], False), (["*"], True)])
def test_the_maps_that_match_read_signs_and_nothing_else_changes(patterns, hidden_too):
    plain, binary = tiny_model(scramble=0.1), tiny_model(basis=Xnor(patterns=patterns), scramble=0.1)
    ours, theirs = binary.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert parameter_roles(binary) == parameter_roles(plain)
    reading = {name for name, module in binary.named_modules() if isinstance(module, SignLinear)}
    assert {"blocks.0.attn.c_q", "blocks.3.attn.proj", "blocks.1.mlp.fc"} <= reading
    assert ("blocks.0.mlp.proj" in reading) is hidden_too
    assert not torch.allclose(binary(TOKENS, PLAIN), plain(TOKENS, PLAIN))
    for module in binary.modules():
        if isinstance(module, SignLinear):
            module.forward = super(SignLinear, module).forward
    assert torch.equal(binary(TOKENS, PLAIN), plain(TOKENS, PLAIN))


def test_no_map_that_matches():
    with pytest.raises(ValueError, match="match no linear map"):
        tiny_model(basis=Xnor(patterns=["blocks.*.nothing"]))

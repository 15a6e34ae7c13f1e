"""Differential attention against its formula in double precision, with documents, back ends and costs."""

import math
from functools import partial

import pytest
import torch

from pgolf.kernels.attend import BACKENDS, probe
from pgolf.kernels.packing import Packing
from pgolf.kernels.reference import reference
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context
from pgolf.model.differential import Difference, Differential
from pgolf.model.flops import flops_per_token
from pgolf.model.norm import rms_norm
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.rope import Rotary
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(2))
ROPE = Rotary(dims=4, base=1e4)


def attention(dims=4, num_heads=2, num_kv_heads=1):
    return partial(
        CausalSelfAttention,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        rope=Rotary(dims=dims, base=1e4),
        exclude=None,
        gate=None,
    )


def started(layer=2):
    part = Difference(16, layer, 4)
    initialise(part, 0)
    return part


def inputs(heads=4, groups=2, tokens=9):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, tokens, count, 16, generator=generator) for count in (heads, groups, groups)]


def test_it_is_the_difference_of_two_softmax_maps():
    part, (q, k, v) = started(), inputs()
    initial = 0.8 - 0.6 * math.exp(-0.3 * 2)
    with torch.no_grad():
        part.diff_lambda.normal_(0.0, 0.3)
    a1, b1, a2, b2 = part.diff_lambda
    share = torch.exp(a1 @ b1) - torch.exp(a2 @ b2) + initial
    torch.testing.assert_close(part.share(), share)
    k_of_head, v_of_head = (x.repeat_interleave(2, dim=2).double() for x in (k, v))
    mask = torch.ones(9, 9).tril().bool()
    maps = []
    for half in (slice(0, 8), slice(8, 16)):
        scores = torch.einsum("bihd,bjhd->bhij", q[..., half].double(), k_of_head[..., half]) / math.sqrt(8)
        maps.append(scores.masked_fill(~mask, -torch.inf).softmax(-1))
    y = torch.einsum("bhij,bjhd->bihd", maps[0] - share.double() * maps[1], v_of_head)
    expected = (1 - initial) * rms_norm(y)
    torch.testing.assert_close(part(q, k, v, Context()).double(), expected, rtol=1e-4, atol=1e-5)


def test_halves_are_normed_and_rotated_by_themselves():
    part, (q, _, _) = started(), inputs()
    placed = part.placed(q, ROPE)
    for half in (slice(0, 8), slice(8, 16)):
        torch.testing.assert_close(placed[..., half], ROPE(rms_norm(q[..., half])))


def test_lambda_begins_near_its_depth_and_learns():
    for layer, initial in ((0, 0.2), (3, 0.8 - 0.6 * math.exp(-0.9))):
        part = Difference(64, layer, 16)
        initialise(part, 0)
        assert part.initial == pytest.approx(initial) and abs(float(part.share().detach()) - initial) < 0.5
    model = tiny_model(scramble=0.2, attention=attention(), differential=Differential())
    assert parameter_roles(model)["blocks.0.attn.difference.diff_lambda"] == "scalar"
    model.logits(model(TOKENS)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_it_changes_the_model_and_keeps_it_causal_and_documents_apart():
    model = tiny_model(scramble=0.2, attention=attention(), differential=Differential())
    plain = tiny_model(scramble=0.2, attention=attention())
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys and len(missing.unexpected_keys) == 4
    assert not torch.allclose(model(TOKENS), plain(TOKENS))
    changed = TOKENS.clone()
    changed[:, 13:] = 5
    assert torch.equal(model(TOKENS)[:, :13], model(changed)[:, :13])
    packed = model(TOKENS, Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 9, 24]))))
    alone = torch.cat([model(TOKENS[:, :9]), model(TOKENS[:, 9:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(BACKENDS))
def test_every_back_end_gives_the_same(name):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if reason := probe(name, device):
        pytest.skip(reason)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    part = Difference(64, 1, 16)
    initialise(part, 0)
    part = part.to(device)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 40, heads, 64, generator=generator).to(device, dtype) for heads in (4, 2, 2))
    packing = Packing.from_cu_seqlens(torch.tensor([0, 7, 7, 40, 40], dtype=torch.int32), 64).to(device)
    got, expected = (part(q, k, v, Context(each, packing)) for each in (BACKENDS[name](), reference))
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got.float(), expected.float(), rtol=tolerance, atol=tolerance)


def test_attention_costs_twice_and_the_rest_the_same():
    one, two = (tiny_model(attention=attention(), differential=part) for part in (None, Differential()))
    single, double = (flops_per_token(model, model.plan, 64) for model in (one, two))
    assert double.attention == 2 * single.attention and double.blocks == single.blocks


@pytest.mark.parametrize(("dims", "heads"), [(12, 2), (2, 32)])
def test_heads_that_cannot_be_halved_are_refused(dims, heads):
    dim = 32 if heads == 2 else 96  # head dimensions 16 and 3
    with pytest.raises(ValueError, match="half of the head dimension"):
        tiny_model(dim=dim, attention=attention(dims, heads, 1), differential=Differential())


def test_lambda_is_not_rounded_under_autocast():
    part = started()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(part.share(), started().share()) and part.share().dtype == torch.float32
    assert torch.equal(part.share(), started().share())

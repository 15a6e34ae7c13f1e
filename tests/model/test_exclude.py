"""XSA of learned strength, and over all passes of a repeated block: formulas, memory, causality, isolation."""

from functools import partial

import pytest
import torch

from pgolf.kernels.packing import Packing
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context, Walk
from pgolf.model.exclude import (
    AdaptiveOwnValue,
    ValuesOfAllPasses,
    adaptive_own_value,
    exclude_value,
    values_of_all_passes,
)
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.rope import Rotary
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(2))


def model_of(exclude, **parts):
    attention = partial(
        CausalSelfAttention, num_heads=4, num_kv_heads=2, rope=Rotary(dims=4, base=1e4), exclude=exclude, gate=None
    )
    return tiny_model(scramble=0.2, attention=attention, num_loops=2, **parts)


def heads(*counts, width=6):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, count, width, generator=generator) for count in counts]


def test_adaptive_strength_lies_between_both():
    part = AdaptiveOwnValue(0.0)
    initialise(part, 0)
    assert parameter_roles(part) == {"xsa_strength": "scalar"}
    y, v = heads(4, 2)
    torch.testing.assert_close(part(y, v), (y + exclude_value(y, v)) / 2)
    with torch.no_grad():
        part.xsa_strength.fill_(1.3)
    share = torch.sigmoid(torch.tensor(1.3))
    torch.testing.assert_close(part(y, v), (1 - share) * y + share * exclude_value(y, v))
    part(y, v).sum().backward()
    assert part.xsa_strength.grad.any()


def test_all_passes_leave_nothing_in_the_span_of_the_values():
    """Three visits: the projection on the complement of the span, found by least squares for every head of a group."""
    part, walk = ValuesOfAllPasses(7), Walk(TOKENS)
    y, *values = heads(4, 2, 2, 2)
    assert torch.equal(part(y, values[0], walk), exclude_value(y, values[0]))
    part(y, values[1], walk)
    got = part(y, values[2], walk)
    spans = torch.stack(values, dim=-1).double().repeat_interleave(2, dim=2)  # [2, 5, 4, 6, 3]
    target = y.double()[..., None]
    expected = target - spans @ torch.linalg.lstsq(spans, target).solution
    torch.testing.assert_close(got.double(), expected[..., 0], atol=1e-4, rtol=1e-3)
    assert set(walk.kept) == {("values of block 7", 0), ("values of block 7", 1), ("values of block 7", 2)}


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_value_that_is_nothing_new_removes_nothing_more(noise):
    part, walk = ValuesOfAllPasses(0), Walk(TOKENS)
    y, v, other = heads(4, 2, 2)
    part(y, v, walk)
    torch.testing.assert_close(part(y, v + noise * other, walk), exclude_value(y, v), atol=1e-3, rtol=0)
    bare, zero = Walk(TOKENS), torch.zeros_like(v)
    part(y, zero, bare)
    assert torch.equal(part(y, zero, bare), y)


def test_without_a_walk_there_is_no_memory():
    y, v = heads(4, 2)
    with pytest.raises(ValueError, match="needs context.walk"):
        ValuesOfAllPasses(0)(y, v)


def test_repeated_visits_differ_from_plain_xsa_and_first_ones_do_not():
    model, plain = model_of(partial(values_of_all_passes, last=None)), tiny_model(scramble=0.2, num_loops=2)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(TOKENS), plain(TOKENS))
    for one in (model, plain):
        one.set_plan("looped")
    assert not torch.allclose(model(TOKENS), plain(TOKENS))
    assert torch.equal(model(TOKENS), model(TOKENS))  # each forward begins a walk of its own
    model(TOKENS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_values_of_other_positions_and_documents_are_not_read():
    model = model_of(partial(values_of_all_passes, last=None))
    model.set_plan("looped")
    changed = TOKENS.clone()
    changed[:, 13:] = 5
    assert torch.equal(model(TOKENS)[:, :13], model(changed)[:, :13])
    packed = model(TOKENS, Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 9, 24]))))
    alone = torch.cat([model(TOKENS[:, :9]), model(TOKENS[:, 9:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_only_the_last_blocks_have_it():
    model = model_of(partial(adaptive_own_value, last=1, init=0.0))
    assert [attention.exclude is None for attention in model.attentions] == [True, True, True, False]
    with pytest.raises(ValueError, match="must be at least 1"):
        model_of(partial(values_of_all_passes, last=0))


def test_the_projection_is_not_rounded_under_autocast():
    y, *values = heads(4, 2, 2, 2)

    def walked():
        part, walk = ValuesOfAllPasses(7), Walk(TOKENS)
        return [part(y, value, walk) - exclude_value(y, value) for value in values]

    exact = walked()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = walked()
    for got, expected in zip(rounded, exact, strict=True):  # what the visits before take away
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert exact[2].abs().max() > 0.1

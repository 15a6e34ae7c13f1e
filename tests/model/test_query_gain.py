"""A bounded query gain: its formula, where it begins, and that nothing of the model escapes it."""

import math
from functools import partial

import pytest
import torch

from pgolf.kernels.packing import Packing
from pgolf.model.context import PLAIN, Context
from pgolf.model.plan import Depth
from pgolf.model.query_gain import BoundedGain, BoundedGains
from pgolf.model.roles import parameter_roles
from pgolf.model.state_space import StateSpace
from pgolf.model.vectors import VirtualVectors
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(2))


def test_it_is_the_bound_times_a_sigmoid():
    gain = BoundedGain(4, 2.0, 3.0)
    with torch.no_grad():
        gain.raw.copy_(torch.tensor([0.0, math.log(2.0), -50.0, 50.0]))
    torch.testing.assert_close(gain(), torch.tensor([1.5, 2.0, 0.0, 3.0]))
    gain().sum().backward()
    share = torch.sigmoid(gain.raw.detach())
    torch.testing.assert_close(gain.raw.grad, 3.0 * share * (1.0 - share))


@pytest.mark.parametrize("gains", [2.0, [0.5, 2.0, 2.9, 1.0]])
def test_it_begins_at_the_gain_that_the_model_was_given(gains):
    model, plain = (tiny_model(qk_gain=gains, query_gain=part) for part in (BoundedGains(maximum=3.0), None))
    for layer, block in enumerate(model.blocks):
        expected = gains[layer] if isinstance(gains, list) else gains
        torch.testing.assert_close(block.attn.gains, torch.full((4,), expected))
    assert parameter_roles(model)["blocks.0.attn.q_gain.raw"] == "scalar"
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-5)


def test_attention_multiplies_with_it_and_it_learns():
    """As the model whose gains are those numbers."""
    model, plain = (tiny_model(scramble=0.2, query_gain=part) for part in (BoundedGains(maximum=3.0), None))
    weights = model.state_dict()
    for layer in range(4):
        weights[f"blocks.{layer}.attn.q_gain"] = 3.0 * torch.sigmoid(weights.pop(f"blocks.{layer}.attn.q_gain.raw"))
    plain.load_state_dict(weights)
    context = Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 9, 24])))
    torch.testing.assert_close(model(TOKENS, context), plain(TOKENS, context), rtol=1e-5, atol=1e-5)
    model(TOKENS, context).square().mean().backward()
    assert all(block.attn.q_gain.raw.grad.any() for block in model.blocks)


def test_no_score_of_a_head_is_beyond_the_bound():
    model = tiny_model(scramble=0.5, query_gain=BoundedGains(maximum=3.0))
    attention = model.blocks[0].attn
    q, k = (100.0 * torch.randn(1, 50, heads, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2))
    with torch.no_grad():
        attention.q_gain.raw.fill_(40.0)
        q, k = attention._placed(q, PLAIN, attention.gains), attention._placed(k, PLAIN)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, dim=2)) / math.sqrt(8)
    assert scores.abs().max() <= 3.0 * math.sqrt(8) * (1 + 1e-6)


def test_places_with_vectors_of_their_own_are_bounded_too():
    depth = Depth(num_layers=3, loop_start=0, loop_end=1, num_loops=1, skips=False, norm_depth="virtual")
    model = tiny_model(depth=depth, vectors=VirtualVectors, query_gain=BoundedGains(maximum=3.0))
    model.set_plan("looped")
    assert model.vectors.more and all(isinstance(one.q_gain, BoundedGain) for one in model.vectors.more)
    gains = [vectors.q_gain for step in model.plan.passes if (vectors := model.vectors_of(step)) is not None]
    assert gains and all(torch.equal(gain, gains[0]) and float(gain.max().detach()) <= 3.0 for gain in gains)
    model(TOKENS).square().mean().backward()
    assert all(one.q_gain.raw.grad is not None for one in model.vectors.more)


@pytest.mark.parametrize("gain", [3.0, 5.0, 0.0, -1.0, [1.0, 1.0, 1.0, 3.5]])
def test_gains_that_the_bound_excludes_are_refused(gain):
    with pytest.raises(ValueError, match="give a bound above it"):
        tiny_model(qk_gain=gain, query_gain=BoundedGains(maximum=3.0))


def test_a_bound_that_bounds_nothing_is_refused():
    with pytest.raises(ValueError, match="maximum=0"):
        BoundedGains(maximum=0.0)
    space = partial(StateSpace, layers=None, state_dim=6, head_dim=8, expand=1, conv_width=4, chunk=8)
    with pytest.raises(ValueError, match="query_gain: no block has attention"):
        tiny_model(state_space=space(), query_gain=BoundedGains(maximum=3.0))

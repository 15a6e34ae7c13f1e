"""Attention by alpha-entmax as a part of a model: against its formula, with documents, adapters, differences of two
maps, and an alpha that moves."""

import copy
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pgolf.kernels.entmax import entmax
from pgolf.kernels.packing import Packing
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.block import WithoutAttention
from pgolf.model.context import PLAIN, Context
from pgolf.model.control import controlled
from pgolf.model.differential import Differential
from pgolf.model.entmax import Entmax, EntmaxFromSoftmax, MovingAlpha
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.rope import Rotary
from pgolf.model.state_space import StateSpace
from tests.model.test_compile import check, contexts
from tests.model.test_compile import scrambled as compiled_start
from tests.support import ALONE, tiny_model
from tests.train.small import train

TOKENS = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(2))
SHORT = {"depth": Depth(num_layers=2, loop_start=0, loop_end=0, num_loops=0, skips=True)}
CUT = Packing.from_cu_seqlens(torch.tensor([0, 9, 24]))


def model_of(part=None, **parts):
    return tiny_model(scramble=0.2, entmax=part, **parts)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_a_head_follows_the_formula(alpha):
    """Grouped heads, normed, rotated, times their gain, entmax of their products over earlier tokens."""
    rope = Rotary(dims=4, base=1e4)
    settings = {"num_heads": 4, "num_kv_heads": 2, "rope": rope, "exclude": None, "gate": None}
    model = tiny_model(scramble=0.3, attention=partial(CausalSelfAttention, **settings), entmax=Entmax(alpha=alpha))
    attention = model.blocks[1].attn
    n = torch.randn(2, 11, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        q, k, v = (one(n).unflatten(-1, (-1, 8)) for one in (attention.c_q, attention.c_k, attention.c_v))
        q, k = rope(rms_norm(q)) * attention.q_gain[:, None], rope(rms_norm(k))
        expected = torch.zeros(2, 11, 4, 8)
        for head in range(4):
            for t in range(11):
                for row in range(2):
                    scores = k[row, : t + 1, head // 2] @ q[row, t, head] / 8**0.5
                    expected[row, t, head] = entmax(scores, alpha) @ v[row, : t + 1, head // 2]
        got = attention(n, 0, PLAIN)
    torch.testing.assert_close(got, expected.flatten(2) @ attention.proj.weight.T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, tiny_like(model)(n, 0, PLAIN), rtol=1e-3, atol=1e-3)


def tiny_like(model):
    """The same attention with a softmax."""
    attention = copy.deepcopy(model.blocks[1].attn)
    attention.entmax = None
    return attention


def test_a_fixed_alpha_is_in_no_state_dict_and_moves_no_initial_value():
    plain, sparse = tiny_model(), tiny_model(entmax=Entmax(alpha=1.5))
    assert plain.state_dict().keys() == sparse.state_dict().keys()
    assert all(torch.equal(value, sparse.state_dict()[name]) for name, value in plain.state_dict().items())
    with torch.device("meta"):
        weightless = tiny_model(entmax=Entmax(alpha=1.5))
    assert weightless.blocks[0].attn.entmax.alpha == 1.5


def test_it_is_causal_and_keeps_documents_apart():
    model = model_of(Entmax(alpha=1.5))
    assert not torch.allclose(model(TOKENS), model_of()(TOKENS), rtol=1e-3, atol=1e-3)
    changed = TOKENS.clone()
    changed[:, 13:] = 5
    assert torch.equal(model(TOKENS)[:, :13], model(changed)[:, :13])
    alone = torch.cat([model(TOKENS[:, :9]), model(TOKENS[:, 9:])], dim=1)
    torch.testing.assert_close(model(TOKENS, Context(packing=CUT)), alone, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns_through_it():
    model = model_of(Entmax(alpha=1.5))
    model.logits(model(TOKENS, Context(packing=CUT))).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_adapters_act_before_it():
    """A delta on queries and keys is that of other matrices."""
    model = model_of(Entmax(alpha=1.5))
    other = copy.deepcopy(model)
    delta = torch.randn(32, 32, generator=torch.Generator().manual_seed(8)) * 0.3

    class OnQueries:
        def delta(self, slot, site, x):
            return x @ delta.T if (slot, site) == (1, "q") else None

    with torch.no_grad():
        other.blocks[1].attn.c_q.weight += delta
    found = model(TOKENS, Context(adapters=OnQueries()))
    torch.testing.assert_close(found, other(TOKENS), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, model(TOKENS), rtol=1e-3, atol=1e-3)


def test_both_maps_of_a_difference_are_sparse():
    parts = {"differential": Differential(), "entmax": Entmax(alpha=2.0)}
    settings = {"num_heads": 2, "num_kv_heads": 1, "rope": Rotary(dims=4, base=1e4), "exclude": None, "gate": None}
    model = tiny_model(scramble=0.2, attention=partial(CausalSelfAttention, **settings), **parts)
    attention = model.blocks[0].attn
    q, k, v = (torch.randn(1, 6, count, 16, generator=torch.Generator().manual_seed(count)) for count in (2, 1, 1))
    other = attention.difference(q, k, v, Context(attention=attention.entmax))
    assert torch.equal(attention._attended(q, k, v, PLAIN), other)
    assert not torch.allclose(other, attention.difference(q, k, v, PLAIN), rtol=1e-3, atol=1e-3)


def test_alpha_moves_evenly_and_then_stays():
    moving = MovingAlpha(1.5, 10)
    initialise(moving, 0)
    q, k, v = (torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    softmax = Context().attention(q, k, v, None)
    torch.testing.assert_close(moving(q, k, v, None), softmax)
    for step, expected in ((0, 1.0), (5, 1.25), (10, 1.5), (99, 1.5)):
        moving.begin_step(step)
        assert moving.alpha.item() == expected
        with torch.no_grad():
            sharp = Entmax(alpha=expected).made() if expected > 1.0 else None
            wanted = softmax if sharp is None else sharp(q, k, v, None)
        torch.testing.assert_close(moving(q, k, v, None), wanted)


def test_what_averaging_leaves_of_alpha_is_the_number_itself():
    moving = MovingAlpha(2.0, 10)
    q, k, v = (torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    for near, number in ((1.4999999, 1.5), (2.0000005, 2.0)):
        with torch.no_grad():
            moving.alpha.fill_(near)
        assert torch.equal(moving(q, k, v, None), Entmax(alpha=number).made()(q, k, v, None))


def test_training_moves_alpha_and_the_averaged_weights_keep_it(tmp_path):
    part = EntmaxFromSoftmax(alpha=1.5, steps=6)
    averaged, _, _, model = train(tmp_path, max_steps=10, model=tiny_model(entmax=part))
    assert [one.alpha.item() for one in controlled(model)] == [1.5] * 4
    assert parameter_roles(model)["blocks.0.attn.entmax.alpha"] == "scalar"
    assert 1.0 < averaged["blocks.0.attn.entmax.alpha"].item() <= 1.5
    assert all(one.steered() == [one.alpha] for one in controlled(model))
    for one in controlled(model):
        one.end_step(ALONE)  # moves nothing further
    assert model.blocks[0].attn.entmax.alpha.item() == 1.5


def test_it_is_one_graph():
    check(compiled_start(tiny_model(**SHORT, entmax=Entmax(alpha=1.5))), "eager", ["plain"], contexts())


def test_the_backward_of_a_packed_row_is_one_graph_and_no_other_when_alpha_has_moved():
    model = compiled_start(tiny_model(**SHORT, entmax=EntmaxFromSoftmax(alpha=1.5, steps=4)))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(
        lambda tokens, context: model(tokens, context)[..., :5].square().sum(), backend="aot_eager"
    )
    found = []
    for step in (0, 2, 4):
        for part in controlled(model):
            part.begin_step(step)
        model.zero_grad()
        value = compiled(TOKENS, Context(packing=CUT))
        value.backward()
        expected = model(TOKENS, Context(packing=CUT))[..., :5].square().sum()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
        found.append(value.item())
    assert len(set(found)) == 3 and counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Entmax(alpha=1.0), "alpha=1 is the softmax"),
        (lambda: Entmax(alpha=2.5), "alpha=2.5 must lie between"),
        (lambda: EntmaxFromSoftmax(alpha=1.5, steps=0), "steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_blocks_without_attention_are_left_out():
    model = tiny_model(entmax=Entmax(alpha=1.5), without_attention=WithoutAttention(layers=[0]))
    assert model.blocks[0].attn is None and all(one.entmax is not None for one in model.attentions)
    space = StateSpace(layers=None, state_dim=6, head_dim=8, expand=1, conv_width=4, chunk=8)
    with pytest.raises(ValueError, match="entmax: no block has attention"):
        tiny_model(entmax=Entmax(alpha=1.5), state_space=space)

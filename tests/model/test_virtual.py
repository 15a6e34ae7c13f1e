"""What belongs to visits instead of blocks: vectors by place, MLPs of repeated visits; and blocks without attention."""

from functools import partial

import pytest
import torch

from pgolf.model.block import WithoutAttention
from pgolf.model.context import PLAIN
from pgolf.model.flops import flops_per_token
from pgolf.model.lanes import ExchangingLanes
from pgolf.model.mlp import SwiGLU
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth
from pgolf.model.repeats import OwnDown, OwnMlp
from pgolf.model.vectors import VirtualVectors
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))
BARE = WithoutAttention(layers=[0])


def plain_walk(model, plan, block_of):
    """The forward pass of a model without skips, written out; block_of(step) gives (attention, mlp, vectors)."""
    x = x0 = rms_norm(model.tok_emb(TOKENS))
    for step in model.plans[plan].passes:
        attention, mlp, vectors = block_of(step)
        scale = (step.block + 1) ** -0.5
        x = vectors.resid_mix[0] * x + vectors.resid_mix[1] * x0
        if attention is not None:
            x = x + vectors.attn_scale * attention(rms_norm(x) * scale, step.slot, PLAIN, vectors.q_gain)
        x = x + vectors.mlp_scale * mlp(rms_norm(x) * scale)
    return rms_norm(x)


def model_of(**parts):
    return tiny_model(
        scramble=0.2, depth=Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=2, skips=False), **parts
    )


@pytest.mark.parametrize("parts", [{"vectors": VirtualVectors}, {"repeat_mlp": OwnMlp}, {"without_attention": BARE}])
def test_other_parameters_keep_their_initial_values(parts):
    with_part, without = tiny_model(**parts).state_dict(), tiny_model().state_dict()
    for name in with_part.keys() & without.keys():
        assert torch.equal(with_part[name], without[name])
    assert with_part.keys() != without.keys()


@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_vectors_by_place(plan):
    model = model_of(vectors=VirtualVectors)
    assert len(model.vectors.more) == 4
    model.set_plan(plan)

    def block_of(step):
        place, block = step.slot, model.blocks[step.block]
        vectors = model.blocks[place].vectors() if place < 4 else model.vectors.more[place - 4].set()
        return block.attn, lambda n: block.mlp(n, step.slot, PLAIN), vectors

    torch.testing.assert_close(model(TOKENS), plain_walk(model, plan, block_of))


def test_vectors_by_place_change_nothing_before_recurrence():
    model, plain = model_of(vectors=VirtualVectors), model_of()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "vectors" not in name})
    assert torch.equal(model(TOKENS), plain(TOKENS))
    for one in (model, plain):
        one.set_plan("looped")
    assert not torch.allclose(model(TOKENS), plain(TOKENS))


@pytest.mark.parametrize("own", [OwnMlp, OwnDown])
def test_repeated_visits_read_their_own_matrices(own):
    model = model_of(repeat_mlp=own)
    model.set_plan("looped")
    assert [len(block.repeats) for block in model.blocks] == [0, 2, 2, 0]

    def block_of(step):
        block = model.blocks[step.block]
        if not step.visit:
            return block.attn, lambda n: block.mlp(n, 0, PLAIN), block.vectors()
        repeat = block.repeats[step.visit - 1]
        if own is OwnMlp:
            return block.attn, lambda n: repeat.mlp(n, 0, PLAIN), block.vectors()
        return block.attn, lambda n: repeat.mlp["proj"](block.mlp.hidden(n)), block.vectors()

    torch.testing.assert_close(model(TOKENS), plain_walk(model, "looped", block_of))


@pytest.mark.parametrize("own", [OwnMlp, OwnDown])
@pytest.mark.parametrize("mlp", [None, partial(SwiGLU, multiple=1.5)])
def test_repeats_begin_as_copies_when_their_visit_comes(own, mlp):
    parts = {"mlp": mlp} if mlp else {}
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=2, skips=True, ramp=True)
    model, tied = (tiny_model(depth=depth, **more, **parts) for more in ({"repeat_mlp": own}, {}))
    for one in (model, tied):
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "repeats" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    for plan in ("loop1", "looped"):
        begun = model.begin_plan(plan)
        assert begun and all(f".repeats.{0 if plan == 'loop1' else 1}." in target for target in begun)
        tied.set_plan(plan)
        assert torch.equal(model(TOKENS), tied(TOKENS))
    assert model.begin_plan("looped") == {} == model.copies("looped")


def test_a_block_without_attention():
    model = model_of(without_attention=BARE)
    assert not any(name.startswith(("blocks.0.attn.", "blocks.0.attn_scale")) for name in model.state_dict())

    def block_of(step):
        block = model.blocks[step.block]
        vectors = block if block.attn is None else block.vectors()
        return block.attn, lambda n: block.mlp(n, 0, PLAIN), vectors

    torch.testing.assert_close(model(TOKENS), plain_walk(model, "plain", block_of))
    assert {(slot, site) for slot, site, *_ in model.adapter_sites() if slot == 0} == {(0, "mlp")}
    assert "blocks.0.attn.c_q.weight" not in model.calibration_sites()
    with_it, without = (flops_per_token(one, one.plans["plain"], 64) for one in (model_of(), model))
    assert without.attention == pytest.approx(with_it.attention * 3 / 4) and without.blocks < with_it.blocks


def test_all_three_on_lanes_have_gradients():
    model = tiny_model(
        scramble=0.2,
        vectors=VirtualVectors,
        repeat_mlp=OwnMlp,
        without_attention=BARE,
        lanes=partial(ExchangingLanes, start_layer=2),
    )
    model.begin_plan("looped")
    model.logits(model(TOKENS)).square().mean().backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert silent == set()


def test_repeats_cost_no_more_operations():
    tied, full = (model_of(**parts) for parts in ({}, {"repeat_mlp": OwnMlp}))
    assert flops_per_token(tied, tied.plans["looped"], 64) == flops_per_token(full, full.plans["looped"], 64)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"without_attention": WithoutAttention(layers=[4])}, "must be some of the layers 0..3"),
        ({"without_attention": WithoutAttention(layers=[0, 1, 2, 3])}, "not all"),
        ({"repeat_mlp": OwnMlp, "num_loops": 0}, "no plan visits a block again"),
        ({"vectors": VirtualVectors, "without_attention": WithoutAttention(layers=[3])}, "in the place of one without"),
    ],
)
def test_what_cannot_be_is_refused(parts, message):
    num_loops = parts.pop("num_loops", 1)
    depth = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=num_loops, skips=True)
    with pytest.raises(ValueError, match=message):
        tiny_model(depth=depth, **parts)

"""Value embeddings and value residuals against their formulas, by block and by place, with and without recurrence."""

from functools import partial

import pytest
import torch

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context
from pgolf.model.roles import parameter_roles
from pgolf.model.rope import Rotary
from pgolf.model.values import FIRST, ValueEmbeddings, ValueResidual
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))


def with_residual(form, **parts):
    attention = partial(
        CausalSelfAttention,
        num_heads=4,
        num_kv_heads=2,
        rope=Rotary(dims=4, base=1e4),
        exclude=None,
        gate=None,
        value_residual=partial(ValueResidual, form=form),
    )
    return tiny_model(scramble=0.3, attention=attention, **parts)


def values_read(model):
    """What each call of attention gets as values, with the slot: (slot, v [B, T, G, d])."""
    seen, slots = [], []

    def attention(q, k, v, packing):
        seen.append(v)
        return q

    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda module, inputs: slots.append(inputs[1]))
    context = Context(attention).begun(TOKENS)
    projected = {}
    for index, block in enumerate(model.blocks):
        block.attn.c_v.register_forward_hook(
            lambda module, inputs, output, index=index: projected.setdefault(index, []).append(output)
        )
    model(TOKENS, context)
    return list(zip(slots, seen, strict=True)), projected, context.walk


@pytest.mark.parametrize(("by", "slots"), [("block", {4, 5}), ("place", {2, 3})])
def test_value_embeddings_reach_the_last_layers(by, slots):
    """Blocks 0 1 2 1 2 3 in the looped plan: the last two blocks are met at places 2, 4 and 5, the last two places of
    the plain plan are 2 and 3."""
    slots = {2, 4, 5} if by == "block" else slots
    model = tiny_model(
        scramble=0.3,
        value_embedding=ValueEmbeddings(dim=8, table_std=0.01, scale=0.1, last=2, by=by),
        exclude_own_value=False,
    )
    model.set_plan("looped")
    read, projected, walk = values_read(model)
    part = model.value_embedding
    base = part.scale * (part.embed.weight[TOKENS] @ part.proj.weight.T)
    blocks = [step.block for step in model.plan.passes]
    visits = {block: iter(projected[block]) for block in projected}
    for slot, v in read:
        block = blocks[slot]
        own = next(visits[block])
        row = (block if by == "block" else slot) - 2
        expected = own + part.layer_scales[row] * base if slot in slots else own
        torch.testing.assert_close(v.flatten(2), expected)
    assert {slot for name, slot in walk.kept if name == "value_embedding"} == slots
    assert parameter_roles(model)["value_embedding.embed.weight"] == "embedding"
    assert model.calibration_sites()["value_embedding.proj.weight"] is part.proj


def test_value_embeddings_start_as_the_record_did():
    model = tiny_model(value_embedding=ValueEmbeddings(dim=8, table_std=0.01, scale=0.1, last=2, by="block"))
    part = model.value_embedding
    torch.testing.assert_close(part.proj.weight.T @ part.proj.weight, torch.eye(8))  # orthogonal, not zero
    assert part.scale.item() == pytest.approx(0.1) and torch.equal(part.layer_scales, torch.ones(2))
    assert part.embed.weight.std().item() == pytest.approx(0.01, rel=0.1)
    with pytest.raises(ValueError, match="last=5 of 4 layers"):
        tiny_model(value_embedding=ValueEmbeddings(dim=8, table_std=0.01, scale=0.1, last=5, by="block"))


@pytest.mark.parametrize("form", ["learned", "gated"])
def test_value_residual_mixes_with_the_first_layer(form):
    model = with_residual(form)
    model.set_plan("looped")
    read, projected, walk = values_read(model)
    first = projected[0][0]
    visits = {block: iter(projected[block]) for block in projected}
    for slot, v in read:
        block = model.plan.passes[slot].block
        own, part = next(visits[block]), model.blocks[block].attn.value_residual
        if slot == 0:
            expected = own
        elif form == "learned":
            expected = part.value_lambda[0] * first + part.value_lambda[1] * own
        else:
            expected = own + torch.sigmoid(part.value_alpha) * first
        torch.testing.assert_close(v.flatten(2), expected)
    torch.testing.assert_close(walk.kept[FIRST, 0].flatten(2), first)
    assert not list(model.blocks[0].attn.value_residual.parameters())


def test_the_first_values_hold_their_embedding_too():
    settings = ValueEmbeddings(dim=8, table_std=0.5, scale=1.0, last=4, by="block")
    model = with_residual("gated", value_embedding=settings)
    _, projected, walk = values_read(model)
    part = model.value_embedding
    added = part.layer_scales[0] * part.scale * (part.embed.weight[TOKENS] @ part.proj.weight.T)
    torch.testing.assert_close(walk.kept[FIRST, 0].flatten(2), projected[0][0] + added)


@pytest.mark.parametrize("start", [{"table_std": -0.1, "scale": 0.1}, {"table_std": 0.0, "scale": 0.0}])
def test_a_start_that_cannot_be_or_never_moves_is_refused(start):
    with pytest.raises(ValueError, match="value_embedding.table_std"):
        ValueEmbeddings(dim=8, last=2, by="block", **start)

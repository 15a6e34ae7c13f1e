"""What repeated visits add: each formula, what is frozen, what gradients and adapters see, what is refused."""

from functools import partial

import pytest
import torch

from pgolf.model.context import PLAIN, Context
from pgolf.model.lanes import ExchangingLanes
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth, InPlace
from pgolf.model.recurrence import AddCarry, Blend, CrossLayer, FrozenBlend, FrozenCrossLayer
from pgolf.model.roles import parameter_roles
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))
TABLE = [[1.5, 0.25], [0.75, -0.5]]
BETA = [1.5, 0.5]
ALL = [
    AddCarry(),
    Blend(init=1.0),
    FrozenBlend(layers=[1, 2], alpha=TABLE),
    CrossLayer(),
    FrozenCrossLayer(layers=[1, 2], beta=BETA, alpha=TABLE),
]


def model_of(recurrence, num_loops=2, skips=False, num_layers=4, **parts):
    depth = Depth(num_layers=num_layers, loop_start=1, loop_end=2, num_loops=num_loops, skips=skips)
    model = tiny_model(scramble=0.2, num_layers=num_layers, depth=depth, recurrence=recurrence, **parts)
    model.set_plan("looped")
    return model


def walked(model, after_block):
    """The forward pass of a model without skips; after_block(before, after, block, visit, kept) is the formula."""
    x = x0 = rms_norm(model.tok_emb(TOKENS))
    kept, visits = {}, [0] * 4
    for place, step in enumerate(model.plan.passes):
        after = model.blocks[step.block](x, x0, step, PLAIN)
        x = after_block(x, after, step.block, visits[step.block], kept, place)
        visits[step.block] += 1
    return rms_norm(x)


def test_the_carry_of_the_first_half_is_added():
    """Passes 0 1 2 1 | 2 1 2 3: block 1 carries its second visit to its third, block 2 its first to both others."""
    model = model_of(AddCarry())
    assert [step.block for step in model.plan.passes] == [0, 1, 2, 1, 2, 1, 2, 3]

    def formula(before, after, block, visit, kept, place):
        if block not in (1, 2):
            return after
        if visit:
            after = after + model.recurrence.carry_alpha[block - 1] * kept[block]
        if place < 4:
            kept[block] = after
        return after

    torch.testing.assert_close(model(TOKENS), walked(model, formula))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_blend_goes_part_of_the_way(frozen):
    model = model_of(FrozenBlend(layers=[1, 2], alpha=TABLE) if frozen else Blend(init=0.0))
    alpha = torch.tensor(TABLE) if frozen else model.recurrence.recur_alpha
    assert alpha.shape == (2, 2)

    def formula(before, after, block, visit, kept, place):
        share = alpha[visit - 1, block - 1] if visit else 1.0
        return share * after + (1 - share) * before

    torch.testing.assert_close(model(TOKENS), walked(model, formula), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_every_repeated_block_reads_the_first_visits_of_all(frozen):
    model = model_of(FrozenCrossLayer(layers=[1, 2], beta=BETA, alpha=TABLE) if frozen else CrossLayer())
    part = model.recurrence
    alpha, beta = (
        (torch.tensor(TABLE), torch.tensor(BETA)) if frozen else (part.carry_alpha.detach(), part.carry_beta.detach())
    )

    def formula(before, after, block, visit, kept, place):
        if visit == 0:
            kept[block] = after
            return after
        return beta[block - 1] * after + sum(alpha[block - 1, other - 1] * kept[other] for other in (1, 2))

    torch.testing.assert_close(model(TOKENS), walked(model, formula), rtol=1e-5, atol=1e-5)


def untrained(recurrence, plan="looped"):
    """Scrambled weights, but what the part adds as it begins."""
    model, bare = (model_of(each) for each in (recurrence, None))
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if "recurrence" not in name})
    if model.recurrence is not None:
        for name, parameter in model.recurrence.named_parameters():
            model.recurrence.inits[name](parameter.data, torch.Generator())
    for one in (model, bare):
        one.set_plan(plan)
    return model(TOKENS), bare(TOKENS)


@pytest.mark.parametrize("recurrence", [AddCarry(), Blend(init=1.0), CrossLayer()])
def test_those_that_begin_as_plain_recurrence_do(recurrence):
    torch.testing.assert_close(*untrained(recurrence), rtol=1e-5, atol=1e-5)


def test_a_blend_from_zero_is_no_recurrence_at_all():
    """The trap of the two identities: of the loop, and of no loop."""
    got, looped = untrained(Blend(init=0.0))
    assert not torch.allclose(got, looped)
    bare = model_of(None)
    bare.set_plan("plain")
    torch.testing.assert_close(got, bare(TOKENS))


@pytest.mark.parametrize("recurrence", ALL)
def test_before_recurrence_nothing_changes(recurrence):
    got, bare = untrained(recurrence, "plain")
    assert torch.equal(got, bare)


@pytest.mark.parametrize("recurrence", [AddCarry(), Blend(init=0.0), CrossLayer()])
def test_what_is_learned_has_a_gradient_once_there_are_repeated_visits(recurrence):
    model = model_of(recurrence, skips=True)
    learned = dict(model.recurrence.named_parameters())
    assert set(parameter_roles(model.recurrence).values()) == {"scalar"}
    assert {parameter.dtype for parameter in learned.values()} == {torch.float32}
    for plan, expected in (("plain", False), ("looped", True)):
        model.zero_grad()
        model.set_plan(plan)
        model.logits(model(TOKENS)).square().mean().backward()
        for parameter in learned.values():
            assert (parameter.grad is not None and bool((parameter.grad != 0).all())) == expected


def test_constants_are_in_no_state_dict_and_carries_without_gradient():
    for recurrence in (
        FrozenBlend(layers=[1, 2], alpha=TABLE),
        FrozenCrossLayer(layers=[1, 2], beta=BETA, alpha=TABLE),
    ):
        assert model_of(recurrence).state_dict().keys() == model_of(None).state_dict().keys()
    # with beta 0 and only the carry of block 1 read, nothing before the last visit of block 2 has a gradient
    model = model_of(FrozenCrossLayer(layers=[1, 2], beta=[1.0, 0.0], alpha=[[0.0, 0.0], [1.0, 0.0]]))
    model(TOKENS).square().sum().backward()
    assert model.blocks[1].mlp.fc.weight.grad is None or not model.blocks[1].mlp.fc.weight.grad.any()
    assert model.blocks[3].mlp.fc.weight.grad.any()


@pytest.mark.parametrize("recurrence", ALL)
def test_adapters_at_zero_score_the_same_and_learn_through_it(recurrence):
    model = model_of(recurrence, skips=True)
    settings = LoraSettings(
        rank=2, alpha=2.0, targets=["q", "mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-8, weight_decay=0.0
    )
    adapters = BatchedLora(model, 2, settings, 0, "test")
    assert torch.equal(model(TOKENS, Context(adapters=adapters)), model(TOKENS))
    model(TOKENS, Context(adapters=adapters)).sum().backward()
    assert adapters.up["3:mlp"].grad.any()  # the second visit of block 1


def test_lanes_are_left_alone():
    """With lanes from block 2 on, its repeated visits are on lanes; only block 1 is still repeated on one stream."""
    model = model_of(Blend(init=0.0), lanes=partial(ExchangingLanes, start_layer=2))
    assert model.recurrence.layers == [1] and model.recurrence.recur_alpha.shape == (2, 1)
    with pytest.raises(ValueError, match="no plan visits a block again outside of lanes"):
        model_of(Blend(init=0.0), num_layers=3, lanes=partial(ExchangingLanes, start_layer=0))


def test_it_goes_with_repetition_in_place():
    repeat = InPlace(loops=3, first_layer=1, last_layer=1, from_start=True)
    depth = Depth(num_layers=4, loop_start=0, loop_end=0, num_loops=0, skips=True, repeat=repeat)
    model = tiny_model(scramble=0.2, depth=depth, recurrence=Blend(init=0.0))
    assert model.recurrence.recur_alpha.shape == (2, 1)
    before = model(TOKENS)
    with torch.no_grad():
        model.recurrence.recur_alpha.fill_(1.0)
    plain = tiny_model(scramble=0.2, depth=depth)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "recurrence" not in name})
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    assert not torch.allclose(before, model(TOKENS))


@pytest.mark.parametrize(
    ("recurrence", "num_loops", "message"),
    [
        (AddCarry(), 0, "no plan visits a block again"),
        (FrozenBlend(layers=[3, 4], alpha=TABLE), 2, r"repeat layers \[1, 2\]: other bounds need other constants"),
        (FrozenBlend(layers=[1, 2], alpha=TABLE), 1, "must have 1 rows"),
        (FrozenCrossLayer(layers=[2, 3], beta=BETA, alpha=TABLE), 2, "other bounds"),
        (FrozenCrossLayer(layers=[1, 2], beta=[1.0], alpha=TABLE), 2, "one value for each"),
    ],
)
def test_what_cannot_be_is_refused(recurrence, num_loops, message):
    with pytest.raises(ValueError, match=message):
        model_of(recurrence, num_loops)

"""Operations per token equal what torch counts while the model runs."""

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pgolf.model.context import Context
from pgolf.model.flops import flops_per_token
from pgolf.model.gates import HeadGate
from pgolf.model.lanes import TwoLane
from pgolf.model.mlp import SwiGLU
from pgolf.model.phinta import PerBlock, PreHead
from pgolf.model.smear import SmearGate
from tests.support import tiny_model

TOKENS = 24


def counted(model, plan, attention):
    """What torch counts for one row of TOKENS tokens, per token."""
    model.set_plan(plan)
    context = Context(attention=attention)
    with FlopCounterMode(display=False) as counter:
        model.logits(model(torch.zeros(1, TOKENS, dtype=torch.int64), context), context)
    return counter.get_total_flops() / TOKENS


def no_attention(q, k, v, packing):
    return q * 1.0


def all_pairs(q, k, v, packing):
    """Every token reads every token, without a mask: T keys and T values."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2).transpose(1, 2) for x in (k, v))
    return (torch.softmax(q.transpose(1, 2) @ k.mT, -1) @ v).transpose(1, 2)


PARTS = [
    {},
    {
        "gate": partial(HeadGate, width=12, scale=1.0, init_std=0.0),
        "smear": partial(SmearGate, width=12, bos_id=1),
        "lanes": partial(TwoLane, start_layer=3, final_lane="mean"),
        "mlp": partial(SwiGLU, multiple=2.0),
    },
    {"phinta": PreHead(rank=5, init_scale=0.5)},
    {"phinta": PerBlock(rank=5, init_scale=0.5), "lanes": partial(TwoLane, start_layer=3, final_lane="mean")},
]


@pytest.mark.parametrize("parts", PARTS, ids=["default", "gates, lanes, SwiGLU", "PhiNTA", "PhiNTA on lanes"])
@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_products_are_those_that_torch_counts(plan, parts):
    model = tiny_model(**parts)
    flops = flops_per_token(model, model.plans[plan], TOKENS)
    assert flops.blocks + flops.head == counted(model, plan, no_attention)
    assert flops.training == 3 * flops.forward > 0


@pytest.mark.parametrize("plan", ["plain", "looped"])
def test_causal_attention_is_half_of_all_pairs_and_half_the_diagonal(plan):
    model = tiny_model()
    pairs = counted(model, plan, all_pairs) - counted(model, plan, no_attention)
    flops = flops_per_token(model, model.plans[plan], TOKENS)
    assert flops.attention == pytest.approx(pairs * (TOKENS + 1) / (2 * TOKENS))


def test_a_plan_with_more_visits_costs_more_in_the_blocks_alone():
    model = tiny_model()
    plain, looped = (flops_per_token(model, model.plans[name], TOKENS) for name in ("plain", "looped"))
    assert looped.blocks > plain.blocks and looped.attention > plain.attention and looped.head == plain.head

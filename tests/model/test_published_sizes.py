"""The published records have as many parameters as the options of conf/model that describe them; the default model
is pinned."""

import pytest
import torch

from pgolf.app.build import build
from pgolf.kernels.packing import Packing
from pgolf.model.context import Context
from pgolf.model.roles import parameter_roles, stream
from tests.shipped import job

TWO_LANE = "model/lanes=two_lane"
SPARSE, SMEAR = "model/attention/gate=sparse", "model/smear=smear_bos"
NINE, ELEVEN = (["model=naive", f"model.depth.num_layers={layers}", "model.mlp.multiple=3.0"] for layers in (9, 11))
RESERVED, CONVEX = "model/bigram=xor_reserved", "model/smear=convex_previous"
TERNARY = [
    "model=naive",
    "model.dim=768",
    "model.depth.num_layers=10",
    "model.mlp.multiple=4.0",
    "model/embedding=factored_bias",
    "model/softcap=polynomial",
    "model.attention.rope.dims=96",
    "model.attention.rope.base=5000.0",
    "model/attention/rope/frequencies=yarn",
]
GAINS = [2.3495, 2.8818, 2.7627, 2.8148, 2.7893, 2.8762, 2.5657, 2.7206, 2.6426, 2.2737, 1.9741]  # PR 1648
PUBLISHED = {
    "2026-03-17": (17_059_912, 1024, ["model=naive"]),
    "2026-03-19 int6": (22_368_328, 1024, [*NINE, "model/bigram=linear"]),
    "2026-03-19 smear": (22_368_840, 1024, [*NINE, "model/bigram=linear", "model/smear=convex_raw"]),
    "162": (22_368_841, 1024, [*NINE, RESERVED, "model.bigram.buckets=4096", CONVEX]),
    "287 315": (26_829_913, 1024, [*ELEVEN, RESERVED, CONVEX]),
    "414": (26_993_756, 1024, [*ELEVEN, RESERVED, CONVEX, "model/value_embedding=shared"]),
    "549": (26_928_220, 1024, [*ELEVEN, RESERVED, "model.bigram.buckets=1536", CONVEX, "model/value_embedding=shared"]),
    "1019": (
        27_067_484,
        1024,
        [
            *ELEVEN,
            RESERVED,
            "model.bigram.buckets=3072",
            "model.bigram.dim=112",
            CONVEX,
            "model/value_embedding=shared",
        ],
    ),
    "640": (73_685_840 - 8192 * 768, 8192, TERNARY),  # the record has a head besides that is never used
    "1394 1413": (35_943_512, 8192, ["model.depth.loop_start=4"]),
    "1493 1514": (35_944_536, 8192, ["model/lanes=parallel_residual"]),
    "1530 1610 1626 1727 1729": (35_944_602, 8192, [TWO_LANE]),
    "1667": (35_945_671, 8192, [TWO_LANE, "model/attention/gate=attention_out", "model/smear=smear"]),
    "1736 1769": (35_989_658, 8192, [TWO_LANE, "model/attention/gate=full"]),
    "1787": (35_945_658, 8192, [TWO_LANE, SPARSE]),
    "1797": (35_989_671, 8192, [TWO_LANE, "model/attention/gate=full", SMEAR]),
    "1851 1855 1868": (35_945_671, 8192, [TWO_LANE, SPARSE, SMEAR]),
    "2135": (35_945_673, 8192, [TWO_LANE, SPARSE, "model/smear=smear", "model/softcap=asymmetric"]),
    "2018": (
        35_945_761,
        8192,
        [TWO_LANE, SPARSE, SMEAR, "model/softcap=asymmetric", "model/attention/exclude=gated"],
    ),
}


def model_of(vocab_size, *overrides):
    chosen = job(*overrides)
    assert not chosen.refusals
    return build(chosen.config["model"], "model")(vocab_size, 42)


@pytest.mark.parametrize("record", PUBLISHED)
def test_published_parameter_counts(record):
    count, vocab_size, overrides = PUBLISHED[record]
    with torch.device("meta"):
        model = model_of(vocab_size, "scale=full", *overrides)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if roles[name] == "embedding" else torch.float32)


def test_gains_that_a_record_took_from_the_end_of_its_training():
    """PR 1648 printed the mean gain of each layer after training and began the next run with these."""
    model = model_of(1024, "scale=full", f"model.qk_gain={GAINS}")
    assert [block.attn.q_gain.tolist() for block in model.blocks] == [pytest.approx([gain] * 8) for gain in GAINS]


def test_the_default_model_at_mini_scale_is_pinned():
    """788,556 parameters at 4,096 tokens, float32, and these losses since the first release."""
    model = model_of(4096)
    assert sum(parameter.numel() for parameter in model.parameters()) == 788_556
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=stream(0, f"verify/{name}")))
    tokens = torch.randint(4, 300, (1, 257), generator=stream(0, "tok"))
    packed = Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 100, 256])))
    losses = []
    for plan in ("plain", "looped"):
        model.set_plan(plan)
        for context in (Context(), packed):
            logits = model.logits(model(tokens[:, :-1], context), context)
            losses.append(torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:]).item())
    assert losses == pytest.approx([8.4582262, 8.4584637, 8.4593439, 8.4579849], rel=3e-7)

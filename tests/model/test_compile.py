"""torch.compile takes the whole forward and backward as one graph, and compiles again only for another plan."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pgolf.kernels.attend import sdpa
from pgolf.kernels.packing import Packing
from pgolf.model.activations import XIELU
from pgolf.model.basis import RandomPlusLowRank, RandomRows
from pgolf.model.bigram import Bigram
from pgolf.model.context import Context
from pgolf.model.dropout import NormPercentile
from pgolf.model.embedding import Factored
from pgolf.model.gates import BlockGates, HeadGate
from pgolf.model.head import AsymmetricSoftCap, PolynomialSoftCap
from pgolf.model.lanes import TwoLane
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.moe import SoftDense
from pgolf.model.phinta import PerBlock, PreHead
from pgolf.model.plan import Depth
from pgolf.model.skips import CompressedSkips
from pgolf.model.smear import ConvexSmear, MlpSmears, RunningMeans, SmearGate
from pgolf.model.values import ValueEmbeddings, ValueResidual
from tests.support import tiny_model

TOKENS = torch.randint(1, 64, (1, 49), generator=torch.Generator().manual_seed(0))


def full_stack():
    """PR 1855 with learned caps: smear gate, sparse gate, recurrence, two lanes, asymmetric softcap."""
    return tiny_model(
        num_layers=3,
        gate=partial(HeadGate, width=12, scale=0.5, init_std=0.0),
        lanes=partial(TwoLane, start_layer=2, final_lane="mean"),
        smear=partial(SmearGate, width=12, bos_id=1),
        softcap=partial(AsymmetricSoftCap, cap=30.0),
    )


def naive():
    """The baseline of 2026-03-17."""
    return tiny_model(
        exclude_own_value=False,
        layer_scale=False,
        skip_gates=False,
        depth=Depth(num_layers=3, loop_start=0, loop_end=0, num_loops=0, skips=True),
        mlp=partial(LeakyReLUSquared, multiple=2.0, slope=0.0),
    )


def experts():
    """Experts that read the embedding, frozen matrices, PhiNTA in every block, long hidden vectors dropped."""
    mlp = partial(
        SoftDense,
        multiple=2.0,
        slope=0.5,
        num_experts=4,
        balance=0.1,
        min_share=0.1,
        max_spread=0.1,
        bias_rate=0.1,
        inject=0.5,
    )
    return tiny_model(
        num_layers=3,
        mlp=mlp,
        basis=RandomPlusLowRank(rank=4, patterns=["blocks.*.mlp.fc", "blocks.*.attn.c_q"]),
        phinta=PerBlock(rank=4, init_scale=0.5, basis_gain=0.5),
        mlp_dropout=NormPercentile(quantile=0.9),
    )


def learned_activation():
    """xIELU with learned constants over random rows, PhiNTA before the head."""
    constants = {"alpha_positive": 1.0, "alpha_negative": 0.5, "beta_positive": 0.1, "beta_negative": 0.4}
    return tiny_model(
        num_layers=3,
        mlp=partial(XIELU, multiple=2.0, **constants, trainable=True),
        basis=RandomRows(rank=6, patterns=["blocks.*.mlp.*"]),
        phinta=PreHead(rank=4, init_scale=0.5),
    )


def stream(embedding, skips, mlp_smear, running_mean):
    """All that enters the stream, and what mixes places."""
    return tiny_model(
        num_layers=3,
        embedding=embedding,
        bigram=Bigram(
            hash="xor",
            primes=[36313, 27191, 51497],
            buckets=64,
            dim=8,
            first="reserved",
            bos_id=1,
            table_std=0.0,
            projection_gain=1.0,
            scale=0.05,
        ),
        smear=partial(ConvexSmear, weighs="previous", start=0.0, after_norm=True, bos_id=1),
        mlp_smear=mlp_smear,
        running_mean=running_mean,
        block_gate=BlockGates(start=2.0),
        value_embedding=ValueEmbeddings(dim=8, table_std=0.1, scale=0.5, last=2, by="place"),
        value_residual=partial(ValueResidual, form="learned"),
        skips=skips,
        softcap=partial(PolynomialSoftCap, cap=10.0),
    )


def mixing():
    """Smears and means over the document, a narrow table."""
    return stream(
        Factored(rank=8, init_std=0.1, bias=True), None, MlpSmears(share=0.5, within="document"), RunningMeans()
    )


def bottleneck():
    """Skips through a bottleneck."""
    return stream(None, CompressedSkips(divisor=4), None, None)


def scrambled(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter.add_(0.1 * noise)
    return model


def contexts():
    cuts = torch.tensor([0, 20, 48], dtype=torch.int32)
    return [Context(sdpa), Context(sdpa, Packing.from_cu_seqlens(cuts))]


def run(loss, model, context):
    model.zero_grad()
    value = loss(TOKENS[:, :-1], TOKENS[:, 1:], context)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model, backend, plans, contexts):
    """Compiled and eager agree in every plan and context; every graph is made once and never broken."""

    def loss(inputs, targets, context):
        logits = model.logits(model(inputs, context), context)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for again in range(2):
        for plan in plans:
            model.set_plan(plan)
            for context in contexts:
                got, gradients = run(compiled, model, context)
                expected, exact = run(loss, model, context)
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
                assert gradients.keys() == exact.keys()
                for name, gradient in gradients.items():
                    torch.testing.assert_close(gradient, exact[name], rtol=1e-4, atol=1e-5)
        assert counters["stats"]["unique_graphs"] == len(plans) * len(contexts), f"graphs after round {again}"
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("build", "plans"),
    [
        (full_stack, ["plain", "looped"]),
        (naive, ["plain"]),
        (mixing, ["plain", "looped"]),
        (bottleneck, ["looped"]),
        (experts, ["plain", "looped"]),
        (learned_activation, ["plain"]),
    ],
)
def test_one_graph_a_plan(build, plans):
    check(scrambled(build()), "eager", plans, contexts())


@pytest.mark.parametrize("build", [full_stack, naive, experts, mixing])
def test_backward_of_a_packed_row_is_one_graph_too(build):
    check(scrambled(build()), "aot_eager", ["looped"], contexts()[1:])

"""Any mixture of parts: causal, isolated documents, adapters that start at nothing, names that go both ways."""

from functools import partial

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgolf.interop.published import from_published, to_published
from pgolf.kernels.packing import Packing
from pgolf.model.activations import ASQU, XIELU
from pgolf.model.basis import LowRank, RandomRows
from pgolf.model.bigram import Bigram
from pgolf.model.block import WithoutAttention
from pgolf.model.context import Context
from pgolf.model.embedding import Factored
from pgolf.model.exclude import gated_own_value, own_value
from pgolf.model.gates import AttentionOutGate, BlockGates, HeadGate
from pgolf.model.head import AsymmetricSoftCap, PolynomialSoftCap, SoftCap, TiedHead, UntiedHead
from pgolf.model.lanes import ExchangingLanes, ParallelResidual, SeparateLanes, TwoLane
from pgolf.model.mlp import LeakyReLUSquared, SwiGLU
from pgolf.model.moe import SoftDense
from pgolf.model.phinta import PerBlock, PreHead
from pgolf.model.plan import Depth
from pgolf.model.roles import parameter_roles
from pgolf.model.skips import CompressedSkips
from pgolf.model.smear import ConvexSmear, MlpSmears, RunningMeans, SmearGate
from pgolf.model.values import ValueEmbeddings, ValueResidual
from pgolf.model.vectors import VirtualVectors
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

GATES = [
    None,
    partial(HeadGate, width=12, scale=0.5, init_std=0.0),
    partial(HeadGate, width=None, scale=1.0, init_std=0.005),
    partial(HeadGate, width=None, scale=1.0, init_std=0.0, bias=2.94),
    partial(AttentionOutGate, width=8, source="proj"),
    partial(AttentionOutGate, width=8, source="q"),
]
EXCLUDED = [None, partial(own_value, last=None), partial(own_value, last=1), partial(gated_own_value, last=2)]
LANES = [
    None,
    partial(ParallelResidual, start_layer=1),
    partial(TwoLane, start_layer=2, final_lane="mean"),
    partial(ExchangingLanes, start_layer=1),
    partial(SeparateLanes, start_layer=2),
]
MLPS = [
    partial(LeakyReLUSquared, multiple=2.0, slope=0.5),
    partial(SwiGLU, multiple=1.5),
    partial(ASQU, multiple=2.0, negative_scale=0.25),
    partial(
        XIELU,
        multiple=2.0,
        alpha_positive=[0.1, 1.0],
        alpha_negative=0.5,
        beta_positive=0.1,
        beta_negative=0.4,
        trainable=True,
    ),
    partial(
        SoftDense,
        multiple=2.0,
        slope=0.5,
        num_experts=4,
        balance=0.1,
        min_share=0.1,
        max_spread=0.1,
        bias_rate=0.1,
        inject=0.5,
    ),
]
CAPS = [SoftCap, AsymmetricSoftCap, PolynomialSoftCap]
CONVEX = [
    partial(ConvexSmear, weighs="current", start=3.0, after_norm=False, bos_id=1),
    partial(ConvexSmear, weighs="previous", start=0.0, after_norm=True, bos_id=1),
]
BIGRAMS = [
    None,
    *(
        Bigram(
            hash=kind,
            primes=primes,
            buckets=128,
            dim=4,
            first=first,
            bos_id=1,
            table_std=0.1,
            projection_gain=1.0,
            scale=0.5,
        )
        for kind, primes, first in (
            ("xor", [36313, 27191], "itself"),
            ("xor", [36313, 27191, 51497], "reserved"),
            ("sum", [2246822519, 2654435761], "zero"),
        )
    ),
]
VALUE_EMBEDDINGS = [
    None,
    *(ValueEmbeddings(dim=8, table_std=0.1, scale=0.5, last=2, by=by) for by in ("block", "place")),
]
LORA = LoraSettings(
    rank=2,
    alpha=2.0,
    targets=["q", "k", "v", "o", "mlp", "head"],
    lr=0.1,
    beta1=0.0,
    beta2=0.9,
    epsilon=1e-10,
    weight_decay=0.0,
)
mixtures = st.fixed_dictionaries(
    {
        "gate": st.sampled_from(GATES),
        "lanes": st.sampled_from(LANES),
        "embedding": st.sampled_from([None, Factored(rank=8, init_std=0.1, bias=True)]),
        "bigram": st.sampled_from(BIGRAMS),
        "smear": st.sampled_from([None, partial(SmearGate, width=12, bos_id=1), *CONVEX]),
        "mlp_smear": st.sampled_from([None, MlpSmears(share=0.5, within="document")]),
        "running_mean": st.sampled_from([None, RunningMeans()]),
        "block_gate": st.sampled_from([None, BlockGates(start=2.0)]),
        "value_embedding": st.sampled_from(VALUE_EMBEDDINGS),
        "value_residual": st.sampled_from(
            [None, *(partial(ValueResidual, form=form) for form in ("learned", "gated"))]
        ),
        "compressed": st.booleans(),
        "head": st.sampled_from([TiedHead, UntiedHead]),
        "softcap": st.sampled_from([None, *(partial(cap, cap=5.0) for cap in CAPS)]),
        "mlp": st.sampled_from(MLPS),
        "phinta": st.sampled_from([None, PreHead(rank=4, init_scale=0.5), PerBlock(rank=4, init_scale=0.5)]),
        "basis": st.sampled_from([None, *(kind(rank=4, patterns=["*.mlp.*"]) for kind in (LowRank, RandomRows))]),
        "layer_scale": st.booleans(),
        "vectors": st.sampled_from([None, VirtualVectors]),
        "without_attention": st.sampled_from([None, WithoutAttention(layers=[0])]),
        "skip_gates": st.booleans(),
        "depth": st.builds(
            partial(Depth, num_layers=4, loop_start=1, loop_end=2),
            num_loops=st.integers(0, 2),
            skips=st.booleans(),
            norm_depth=st.sampled_from(["physical", "virtual"]),
        ),
    }
)


def mixture(parts, exclude):
    parts = {**parts}
    skips = CompressedSkips(divisor=4) if parts.pop("compressed") and parts["depth"].skips else None
    model = tiny_model(**parts, skips=skips)
    for layer, block in enumerate(model.blocks):
        if block.attn is not None:
            block.attn.exclude = exclude(4, layer, 4) if exclude is not None else None
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.nan_to_num() + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@given(mixtures, st.sampled_from(EXCLUDED), st.sampled_from(["plain", "looped"]))
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_mixture_of_parts_works(parts, exclude, plan):
    model = mixture(parts, exclude)
    model.set_plan(plan)
    tokens = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(1))
    tokens[0, [0, 10]] = 1

    def logits(tokens, context=None):
        context = context or Context()
        return model.logits(model(tokens, context), context)

    whole = logits(tokens)
    changed = tokens.clone()
    changed[:, 17:] = 5
    assert torch.equal(whole[:, :17], logits(changed)[:, :17])
    packed = logits(tokens, Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 10, 24, 24]))))
    alone = torch.cat((logits(tokens[:, :10]), logits(tokens[:, 10:])), dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-3)

    adapters = BatchedLora(model, 1, LORA, 0, "test")
    torch.testing.assert_close(logits(tokens, Context(adapters=adapters)), whole)
    torch.nn.functional.cross_entropy(logits(tokens, Context(adapters=adapters))[0], tokens[0]).backward()
    read = {f"{step.slot}:" for step in model.plan.passes}
    assert {key[: key.index(":") + 1] for key in adapters.up if not key.startswith("-1")} == read
    assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in model.parameters())

    roles, state = parameter_roles(model), model.state_dict()
    assert set(roles) == {name for name, _ in model.named_parameters()}
    published = {to_published(name): value for name, value in state.items()}
    assert len(published) == len(state) and set(from_published(published)) == set(state)


def test_every_site_of_every_form_takes_an_adapter():
    """A site that a wiring forgot would leave its adapter without a gradient."""
    for lanes in LANES:
        model = tiny_model(scramble=0.3, lanes=lanes)
        model.set_plan("looped")
        adapters = BatchedLora(model, 1, LORA, 0, "test")
        tokens = torch.randint(4, 64, (1, 24), generator=torch.Generator().manual_seed(1))
        context = Context(adapters=adapters)
        torch.nn.functional.cross_entropy(model.logits(model(tokens, context), context)[0], tokens[0]).backward()
        unmoved = [key for key, up in adapters.up.items() if up.grad is None or not up.grad.any()]
        assert unmoved == [], lanes

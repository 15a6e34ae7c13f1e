"""The narrow table and its head, how embeddings, matrices and skips start, and skips through a bottleneck."""

import pytest
import torch

from pgolf.model.bigram import Bigram
from pgolf.model.context import Context
from pgolf.model.embedding import Embedding, Factored
from pgolf.model.flops import flops_per_token
from pgolf.model.head import FactoredHead, PolynomialSoftCap, UntiedHead
from pgolf.model.lanes import TwoLane
from pgolf.model.mup import WidthScaling, width_of
from pgolf.model.plan import Depth
from pgolf.model.precision import Precision
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.skips import CompressedSkips, SkipStart
from pgolf.model.starts import MatrixStart
from pgolf.quant.hessian import collect_hessians
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(0))
FACTORED = Factored(rank=8, init_std=0.02, bias=True)
BIGRAM = Bigram(
    hash="xor",
    primes=[36313, 27191],
    buckets=64,
    dim=4,
    first="reserved",
    bos_id=1,
    table_std=0.0,
    projection_gain=1.0,
    scale=0.05,
)


def test_a_narrow_table_serves_input_and_output():
    model = tiny_model(scramble=0.3, embedding=FACTORED, softcap=None)
    table, up, down, bias = model.tok_emb.weight, model.tok_emb.proj.weight, model.head.reverse.weight, model.head.bias
    assert (table.shape, up.shape, down.shape, bias.shape) == ((64, 8), (32, 8), (8, 32), (64,))
    torch.testing.assert_close(model.tok_emb(TOKENS), table[TOKENS] @ up.T)
    hidden = model(TOKENS)
    torch.testing.assert_close(model.logits(hidden), hidden @ down.T @ table.T + bias)
    roles = parameter_roles(model)
    names = ("tok_emb.weight", "tok_emb.proj.weight", "head.reverse.weight", "head.bias")
    assert [roles[name] for name in names] == ["embedding", "matrix", "matrix", "scalar"]
    plain = tiny_model(embedding=Factored(rank=8, init_std=0.02, bias=False))
    assert "head.bias" not in plain.state_dict()
    with pytest.raises(ValueError, match="rank=32 must lie"):
        tiny_model(embedding=Factored(rank=32, init_std=0.02, bias=True))
    with pytest.raises(ValueError, match="init_std=0.0 must be positive"):
        Factored(rank=8, init_std=0.0, bias=True)


def test_every_matrix_of_the_narrow_table_is_calibrated_on_what_it_multiplies():
    model = tiny_model(scramble=0.3, embedding=FACTORED)
    sites = model.calibration_sites()
    found = collect_hessians(sites, [lambda: model.logits(model(TOKENS))])
    hidden = model(TOKENS).flatten(0, 1)
    narrow = hidden @ model.head.reverse.weight.T
    rows = model.tok_emb.weight[TOKENS].flatten(0, 1)
    for name, inputs in (("tok_emb.weight", narrow), ("head.reverse.weight", hidden), ("tok_emb.proj.weight", rows)):
        torch.testing.assert_close(found[name].hessian, inputs.T @ inputs, rtol=1e-4, atol=1e-5)


def test_adapters_of_the_head_read_the_hidden_states_of_a_narrow_table_too():
    model = tiny_model(scramble=0.3, embedding=FACTORED)
    lora = LoraSettings(
        rank=2, alpha=2.0, targets=["head"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-10, weight_decay=0.0
    )
    adapters = BatchedLora(model, 2, lora, 0, "test")
    context = Context(adapters=adapters)
    hidden = model(TOKENS)
    plain = model.head(hidden, model.tok_emb.weight, Context())
    torch.testing.assert_close(model.head(hidden, model.tok_emb.weight, context), plain)
    with torch.no_grad():
        adapters.up["-1:head"].normal_(generator=torch.Generator().manual_seed(0))
    delta = adapters.delta(-1, "head", hidden)
    assert delta.shape == (2, 12, 64)
    torch.testing.assert_close(model.head(hidden, model.tok_emb.weight, context), plain + delta)


def test_operations_of_thin_maps_are_counted():
    plain = tiny_model()
    base = flops_per_token(plain, plain.plan, 24)
    for parts, blocks, head in (
        ({"embedding": FACTORED}, 2 * 8 * 32, 2 * (64 * 8 + 8 * 32)),
        ({"bigram": BIGRAM}, 2 * 4 * 32, base.head),
        ({"skips": CompressedSkips(divisor=4)}, 2 * (2 * 2 * 8 * 32), base.head),  # two skips, two maps each
    ):
        model = tiny_model(**parts)
        found = flops_per_token(model, model.plan, 24)
        assert (found.blocks - base.blocks, found.head) == (blocks, head)


def test_an_untied_head_needs_no_way_back():
    model = tiny_model(embedding=FACTORED, head=UntiedHead)
    assert not isinstance(model.head, FactoredHead) and model.head.weight.shape == (64, 32)
    assert model.calibration_sites()["head.weight"] is model.head and "tok_emb.weight" not in model.calibration_sites()


def test_widths_follow_the_model_and_not_its_tables():
    model = tiny_model(bigram=BIGRAM, mup=WidthScaling(base_model_dim=16))
    assert width_of(model) == 32 and model.logit_multiplier == 0.5
    with pytest.raises(ValueError, match="two factors"):
        tiny_model(embedding=FACTORED, mup=WidthScaling(base_model_dim=16))


def test_half_precision_tables_compute_in_fp32_on_a_cpu():
    precision = Precision(parameters={"embedding": "bfloat16"}, autocast="bfloat16")
    for parts in ({"embedding": FACTORED}, {"bigram": BIGRAM}):
        model = tiny_model(scramble=0.1, precision=precision, **parts)
        assert model._embed(TOKENS, Context()).dtype == torch.float32
        model.logits(model(TOKENS)).sum().backward()
        assert model.tok_emb.weight.grad.dtype == torch.bfloat16


def test_a_smeared_table_is_the_normal_one_with_a_share_of_the_neighbours():
    normal, smeared = Embedding(9, 4, 0.5, "normal"), Embedding(9, 4, 0.5, "smeared")
    initialise(normal, 3)
    initialise(smeared, 3)
    for i in range(9):
        left, right = normal.weight[max(i - 1, 0)], normal.weight[min(i + 1, 8)]
        torch.testing.assert_close(smeared.weight[i], 0.85 * normal.weight[i] + 0.15 * (left + right) / 2)


def test_polynomial_cap_follows_its_formula_and_has_one_fifteenth():
    cap = PolynomialSoftCap(64, cap=10.0)
    z = torch.tensor([-50.0, -20.0, -3.0, 0.0, 1.0, 5.0, 10.0, 19.0, 20.0, 21.0])
    u = (z / 10).clamp(-2, 2)
    expected = 10 * (u - u**3 / 3 + u**5 / 15).clamp(-1, 1)
    torch.testing.assert_close(cap(z), expected)
    assert cap(torch.tensor(10.0)).item() == pytest.approx(10 * 11 / 15)  # 2/15 of tanh's series would give 8
    grid = cap(torch.linspace(-30, 30, 400))
    assert (grid.diff() >= 0).all() and grid.abs().max() == 10.0
    assert cap(z.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match="positive"):
        PolynomialSoftCap(64, cap=0.0)


def test_skips_that_start_at_one_half():
    plain, half = tiny_model(), tiny_model(skips=SkipStart(start=0.5))
    assert torch.equal(half.skip_weights, torch.full_like(plain.skip_weights, 0.5))
    assert all(
        torch.equal(value, half.state_dict()[name])
        for name, value in plain.state_dict().items()
        if name != "skip_weights"
    )
    none = Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=1, skips=False)
    with pytest.raises(ValueError, match="no U-Net skips"):
        tiny_model(skips=SkipStart(start=0.5), depth=none)


@pytest.mark.parametrize("skip_gates", [False, True])
@pytest.mark.parametrize("lanes", [None, "two"])
def test_skips_through_a_bottleneck_replace_the_weights(skip_gates, lanes):
    def wiring(layers):
        return TwoLane(layers, start_layer=2, final_lane="mean")

    model = tiny_model(
        scramble=0.3, skips=CompressedSkips(divisor=4), skip_gates=skip_gates, lanes=wiring if lanes else None
    )
    assert "skip_weights" not in model.state_dict() and len(model.skip_compressors) == 3
    part = model.skip_compressors[1]
    assert (part.fc.weight.shape, part.proj.weight.shape) == ((8, 32), (32, 8))
    x, skip = torch.randn(1, 3, 32), torch.randn(1, 3, 32)
    step = next(step for step in model.plans["looped"].passes if step.pop == 1)
    low = torch.nn.functional.gelu(skip @ part.fc.weight.T) @ part.proj.weight.T
    gate = torch.sigmoid(model.skip_gates[1]) if skip_gates else None
    expected = x + low if gate is None else low + gate * (x - low)
    torch.testing.assert_close(model._mix_skip(x, skip, step), expected)
    model.set_plan("looped")
    model.logits(model(TOKENS)).logsumexp(-1).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.skip_compressors.parameters())
    assert "skip_compressors.1.fc.weight" in model.calibration_sites()


def test_matrices_start_as_they_are_told():
    plain = tiny_model(bigram=BIGRAM).state_dict()
    uniform = tiny_model(
        bigram=BIGRAM, matrix_init=MatrixStart(kind="uniform", std=None, output_gain=None)
    ).state_dict()
    normal = tiny_model(bigram=BIGRAM, matrix_init=MatrixStart(kind="normal", std=0.02, output_gain=None)).state_dict()
    scaled = tiny_model(
        bigram=BIGRAM, matrix_init=MatrixStart(kind="orthogonal", std=None, output_gain="depth")
    ).state_dict()
    bound = 32**-0.5
    weight = uniform["blocks.0.mlp.fc.weight"]
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert normal["blocks.1.attn.c_q.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    torch.testing.assert_close(scaled["bigram.proj.weight"], plain["bigram.proj.weight"] / 8**0.5)
    started = {"c_q", "c_k", "c_v", "fc"}
    for name, value in plain.items():
        matrix = name.split(".")[-2] in started if "." in name else False
        assert torch.equal(value, scaled[name]) or name == "bigram.proj.weight"
        assert torch.equal(value, uniform[name]) is not (matrix or name == "bigram.proj.weight")
    for kind, std in (("uniform", 0.1), ("normal", None), ("normal", -1.0)):
        with pytest.raises(ValueError, match="matrix_init.std"):
            MatrixStart(kind=kind, std=std, output_gain=None)

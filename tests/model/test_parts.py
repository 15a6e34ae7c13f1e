"""Gates, XSA, MLPs, embedding, heads, softcaps, precision: each part against its formula."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pgolf.model.context import Context
from pgolf.model.embedding import Embedding
from pgolf.model.exclude import GatedOwnValue, exclude_value, gated_own_value, own_value
from pgolf.model.gates import AttentionOutGate, HeadGate
from pgolf.model.head import AsymmetricSoftCap, SoftCap, TiedHead, UntiedHead
from pgolf.model.mlp import SwiGLU
from pgolf.model.precision import Precision
from pgolf.model.roles import initialise, parameter_roles
from pgolf.model.rope import Rotary
from pgolf.model.smear import SmearGate
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def started(part, seed=0):
    initialise(part, seed)
    return part


def scramble(part):
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return part


@pytest.mark.parametrize(("bos_id", "stops"), [(None, ()), (1, (3, 7))])
def test_smear_gate_follows_its_formula(bos_id, stops):
    gate = scramble(SmearGate(16, width=6, bos_id=bos_id))
    e = torch.randn(2, 9, 16)
    tokens = torch.full((2, 9), 5)
    tokens[:, [3, 7]] = 1
    x = gate(e, tokens)
    weight = gate.smear_gate.weight[0]
    for row in range(2):
        for t in range(9):
            g = 0.0 if t == 0 or t in stops else gate.smear_lambda * torch.sigmoid(weight @ e[row, t, :6])
            torch.testing.assert_close(x[row, t], e[row, t] + g * e[row, t - 1])


def test_a_new_smear_gate_changes_nothing_and_learns_its_lambda_first():
    gate, e = started(SmearGate(16, width=12, bos_id=1)), torch.randn(2, 9, 16)
    x = gate(e, TOKENS[:, :9])
    assert torch.equal(x, e)
    x.square().sum().backward()
    assert gate.smear_lambda.grad.abs() > 0 and torch.equal(gate.smear_gate.weight.grad, torch.zeros(1, 12))


def test_full_gate_reads_all_of_the_input():
    gate = scramble(HeadGate(16, 4, width=None, scale=1.0, init_std=0.005))
    n = torch.randn(2, 3, 16)
    assert gate.attn_gate_w.shape == (4, 16)
    torch.testing.assert_close(gate(n, n), torch.sigmoid(n @ gate.attn_gate_w.T)[..., None])


@pytest.mark.parametrize("source", ["proj", "q"])
def test_attention_out_gate_reads_its_source_and_starts_at_one(source):
    gate = started(AttentionOutGate(16, 4, width=6, source=source))
    n, q = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    assert torch.equal(gate(n, q), torch.ones(2, 3, 4, 1))
    scramble(gate)
    z = n if source == "proj" else q
    torch.testing.assert_close(gate(n, q), 2 * torch.sigmoid(z[..., :6] @ gate.attn_gate_proj.weight.T)[..., None])


def test_gate_on_the_query_sees_the_adapter_of_the_query():
    model = tiny_model(scramble=0.3, gate=partial(AttentionOutGate, width=12, source="q"))
    seen = []
    model.blocks[0].attn.gate.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))

    class OnQuery:
        def delta(self, slot, site, x):
            return torch.ones(*x.shape[:2], 32) if (slot, site) == (0, "q") else None

    model(TOKENS)
    model(TOKENS, Context(adapters=OnQuery()))
    torch.testing.assert_close(seen[1], seen[0] + 1)


def test_exclusion_in_the_last_blocks():
    model = tiny_model(exclude_own_value=False)
    assert all(block.attn.exclude is None for block in model.blocks)
    chosen = [own_value(4, layer, 11, last=3) is not None for layer in range(11)]
    assert chosen == [False] * 8 + [True] * 3
    assert all(own_value(4, layer, 3, last=11) is not None for layer in range(3))
    assert gated_own_value(4, 0, 11, last=3) is None
    with pytest.raises(ValueError, match="at least 1"):
        own_value(4, 0, 11, last=0)


def test_gated_exclusion_takes_tanh_alpha_of_the_component():
    y, v = torch.randn(2, 7, 4, 8), torch.randn(2, 7, 2, 8)
    part = started(GatedOwnValue(4))
    assert torch.equal(part(y, v), y)
    with torch.no_grad():
        part.xsa_alpha.copy_(torch.tensor([0.0, 20.0, -0.5, 1.0]))
    shares = torch.tanh(part.xsa_alpha)[:, None]
    torch.testing.assert_close(part(y, v), (1 - shares) * y + shares * exclude_value(y, v))


def test_swiglu_follows_its_formula():
    mlp, n = scramble(SwiGLU(8, 0, 1, multiple=2.5)), torch.randn(1, 3, 8)
    expected = (F.silu(n @ mlp.fc_gate.weight.T) * (n @ mlp.fc.weight.T)) @ mlp.proj.weight.T
    torch.testing.assert_close(mlp(n, 0, Context()), expected)
    assert mlp.fc.weight.shape == (20, 8)
    assert SwiGLU(8, 0, 1, multiple=2.6).fc.weight.shape == (20, 8)  # 20.8, rounded down


def test_overtone_embedding_has_singular_values_that_fall_like_one_over_the_root():
    normal, overtone = started(Embedding(64, 16, 0.02, "normal")), started(Embedding(64, 16, 0.02, "overtone"))
    first = torch.linalg.svdvals(normal.weight)[0]
    torch.testing.assert_close(torch.linalg.svdvals(overtone.weight), first / torch.arange(1, 17).sqrt())


def test_phased_mix_leans_on_the_embedding_early():
    model = tiny_model(mix_init="phase")
    kept = [block.resid_mix[0, 0].item() for block in model.blocks]
    expected = torch.sigmoid(3 * (torch.arange(4) / 3 - 0.5))
    torch.testing.assert_close(torch.tensor(kept), expected)
    assert all(torch.allclose(block.resid_mix.sum(0), torch.ones(32)) for block in model.blocks)


def test_query_gain_for_each_layer():
    gains = [1.0, 2.0, 3.0, 4.0]
    model = tiny_model(qk_gain=gains)
    assert [block.attn.q_gain[0].item() for block in model.blocks] == gains
    with pytest.raises(ValueError, match="3 values for 4 layers"):
        tiny_model(qk_gain=[1.0, 2.0, 3.0])


def test_untied_head_starts_at_zero_and_is_its_own_matrix():
    model = tiny_model(head=UntiedHead)
    assert torch.equal(model.logits(model(TOKENS)), torch.zeros(2, 24, 64))
    assert parameter_roles(model)["head.weight"] == "head"
    sites = model.calibration_sites()
    assert sites["head.weight"] is model.head and "tok_emb.weight" not in sites
    tied = tiny_model()
    assert tied.calibration_sites()["tok_emb.weight"] is tied.head and isinstance(tied.head, TiedHead)
    assert "head.weight" not in tied.state_dict()


def test_equal_asymmetric_caps_are_the_plain_cap_bit_for_bit():
    z = (40 * torch.randn(2, 5, 64)).requires_grad_()
    plain, asymmetric = SoftCap(64, cap=30.0), started(AsymmetricSoftCap(64, cap=30.0))
    assert torch.equal(plain(z), asymmetric(z))
    model, other = (
        tiny_model(scramble=0.3, softcap=partial(kind, cap=30.0), dim=32) for kind in (SoftCap, AsymmetricSoftCap)
    )
    other.load_state_dict({**model.state_dict(), "softcap.softcap_pos": z.new_full((1,), 30.0)}, strict=False)
    with torch.no_grad():
        other.softcap.softcap_neg.fill_(30.0)
    losses = []
    for one in (model, other):
        losses.append(F.cross_entropy(one.logits(one(TOKENS)).flatten(0, 1), TOKENS.flatten()))
        losses[-1].backward()
    assert torch.equal(*losses)
    assert other.softcap.softcap_pos.grad.abs() > 0 and other.softcap.softcap_neg.grad.abs() > 0


def test_softcaps_compute_in_fp32_from_any_dtype():
    z = (40 * torch.randn(3, 64)).bfloat16()
    for cap in (SoftCap(64, cap=30.0), started(AsymmetricSoftCap(64, cap=30.0))):
        assert torch.equal(cap(z), 30.0 * torch.tanh(z.float() / 30.0))
    model = tiny_model(softcap=None)
    assert model.logits(model(TOKENS)).dtype == torch.float32


def test_rope_stretches_its_base_for_rows_beyond_the_training_length():
    rope, plain = Rotary(dims=16, base=1e4, train_tokens=2048), Rotary(dims=16, base=1e4)
    assert rope.base_for(2048) == 1e4 == plain.base_for(10**6)
    assert rope.base_for(4096) == pytest.approx(1e4 * 2 ** (16 / 14))
    assert rope.base_for(4096) == pytest.approx(22_081.8, abs=0.1)
    short, long = torch.randn(1, 24, 2, 16), torch.randn(1, 4096, 2, 16)
    rope(long)
    assert torch.equal(rope(short), plain(short)) and not torch.equal(rope(long), plain(long))
    with pytest.raises(ValueError, match="train_tokens"):
        Rotary(dims=2, base=1e4, train_tokens=8)


def test_precision_keeps_the_dtypes_and_computes_in_fp32_on_a_cpu():
    published = Precision(parameters={"embedding": "bfloat16"}, autocast="bfloat16")
    model = tiny_model(scramble=0.1, precision=published)
    roles = parameter_roles(model)
    assert {parameter.dtype for name, parameter in model.named_parameters() if roles[name] == "embedding"} == {
        torch.bfloat16
    }
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if roles[name] != "embedding")
    hidden = model(TOKENS)
    model.logits(hidden).sum().backward()
    assert hidden.dtype == torch.float32 and model.tok_emb.weight.grad.dtype == torch.bfloat16
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not published.autocast(cpu)._enabled
    assert (published.activations(cpu), published.activations(gpu)) == (torch.float32, torch.bfloat16)
    fp32 = Precision(parameters={}, autocast=None)
    assert fp32.activations(gpu) == torch.float32
    assert not fp32.autocast(cpu)._enabled and (not torch.cuda.is_available() or not fp32.autocast(gpu)._enabled)
    with pytest.raises(ValueError, match="no role 'matrices'"):
        Precision(parameters={"matrices": "bfloat16"}, autocast=None)

"""Width scaling of learning rates, initial values and logits."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.model.attention import CausalSelfAttention
from pgolf.model.gates import HeadGate
from pgolf.model.gpt import GPT
from pgolf.model.head import TiedHead, UntiedHead
from pgolf.model.mup import WidthScaling, scale_initial_values, width_of
from pgolf.model.rope import Rotary
from pgolf.optim.adam import AdamW
from tests.optim.small import DIM, Net, optimisers
from tests.support import tiny_model


@given(st.sampled_from(["matrix", "embedding", "head", "scalar", "gate"]), st.integers(1, 4096))
def test_at_the_base_model_dim_nothing_changes(role, width):
    scaling = WidthScaling(base_model_dim=width)
    for kind in ("adam", "muon"):
        assert scaling.lr(role, (7, width), width, kind) == 1.0
    assert scaling.initial(role, (7, width), width, orthogonal=False) == scaling.logit_multiplier(width) == 1.0


def test_multipliers_of_a_model_four_times_as_wide():
    scaling, shape = WidthScaling(base_model_dim=128), (8, 512)
    adam = {role: scaling.lr(role, shape, 512, "adam") for role in ("matrix", "head", "gate", "embedding", "scalar")}
    assert adam == {"matrix": 0.25, "head": 0.25, "gate": 0.25, "embedding": 1.0, "scalar": 1.0}
    assert scaling.lr("matrix", shape, 512, "muon") == 1.0
    assert scaling.lr("gate", (8, 12), 512, "adam") == 1.0  # twelve inputs at every width
    assert scaling.initial("matrix", shape, 512, orthogonal=False) == 0.5
    assert scaling.initial("matrix", shape, 512, orthogonal=True) == 1.0
    assert scaling.initial("gate", shape, 512, orthogonal=False) == 0.5
    assert scaling.initial("gate", (8, 12), 512, orthogonal=False) == 1.0
    assert scaling.initial("head", shape, 512, orthogonal=True) == scaling.logit_multiplier(512) == 0.25


def test_initial_values_are_scaled_where_they_are_and_no_other_moves():
    plain, scaled = Net().state_dict(), Net()
    scale_initial_values(scaled, WidthScaling(base_model_dim=DIM // 4))
    factors = {"head.weight": 0.25, "embedding": 1.0, "gain": 1.0}
    for name, value in scaled.state_dict().items():
        assert torch.equal(value, plain[name] * factors.get(name, 0.5)), name


def test_a_model_without_one_width_is_refused():
    model = Net()
    assert width_of(model) == DIM
    model.roles["embedding"] = "scalar"
    with pytest.raises(ValueError, match="has none"):
        width_of(model)
    with pytest.raises(ValueError, match="base_model_dim=0"):
        WidthScaling(base_model_dim=0)


def widened(dim: int, mup: WidthScaling | None, head=TiedHead) -> GPT:
    """A model that is widened by heads of eight."""
    heads = {"num_heads": dim // 8, "num_kv_heads": dim // 16, "exclude": None}
    gate = partial(HeadGate, width=None, scale=1.0, init_std=0.05)
    attention = partial(CausalSelfAttention, **heads, rope=Rotary(dims=4, base=1e4), gate=gate)
    return tiny_model(dim=dim, mup=mup, head=head, attention=attention, softcap=None, embedding_std=0.02)


def test_at_its_base_width_a_model_is_the_one_without_to_the_last_bit():
    plain, scaled = widened(32, None), widened(32, WidthScaling(base_model_dim=32))
    tokens = torch.arange(12)[None]
    assert all(torch.equal(value, scaled.state_dict()[name]) for name, value in plain.state_dict().items())
    assert torch.equal(plain.logits(plain(tokens)), scaled.logits(scaled(tokens)))


def test_a_wider_model_has_smaller_gates_and_logits_and_the_same_embedding():
    plain, scaled = widened(64, None), widened(64, WidthScaling(base_model_dim=16))
    before, after = plain.state_dict(), scaled.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value * 0.5 if name.endswith("attn_gate_w") else value), name
    hidden = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled.logits(hidden), plain.logits(hidden) * 0.25)
    untied = widened(64, WidthScaling(base_model_dim=16), UntiedHead)
    assert untied.logit_multiplier is None  # its learning rate and initial values are scaled instead


def sizes_after_steps(dim: int, mup: WidthScaling | None, kind: str, head, steps: int = 4) -> dict[str, float]:
    """Root mean squares of the stream that leaves the blocks, and of the change of the logits, after some steps."""
    model = widened(dim, mup, head)
    tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(3))
    seen: dict[str, torch.Tensor] = {}
    model.final_norm.register_forward_pre_hook(lambda module, inputs: seen.update(stream=inputs[0].detach()))
    adam = partial(AdamW, lr=0.02, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    made = optimisers(model, mup=mup, **({"matrix": adam} if kind == "adam" else {}))
    first = None
    for _ in range(steps + 1):
        logits = model.logits(model(tokens[:, :-1]))
        first = logits.detach() if first is None else first
        made.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        made.step()
    return {name: float(x.square().mean().sqrt()) for name, x in {**seen, "logits": logits.detach() - first}.items()}


@pytest.mark.parametrize(("kind", "head"), [("adam", TiedHead), ("adam", UntiedHead), ("muon", TiedHead)])
def test_coordinates_keep_their_size_over_widths_with_mup_and_grow_without(kind, head):
    """The coordinate check of arXiv 2203.03466, appendix D.1: four steps of training at widths 32 to 256."""
    growth = {}
    for scaled in (True, False):
        small, large = (
            sizes_after_steps(dim, WidthScaling(base_model_dim=32) if scaled else None, kind, head) for dim in (32, 256)
        )
        growth[scaled] = {name: large[name] / small[name] for name in small}
    assert all(0.7 < ratio < 1.4 for ratio in growth[True].values()), growth
    assert growth[False]["logits"] > 2.5 and (kind == "muon" or growth[False]["stream"] > 4.0), growth


@pytest.mark.parametrize(("made", "rates"), [(16, None), (None, 16), (16, 32)])
def test_a_model_and_rates_of_different_widths_are_refused(made, rates):
    of_model, of_rates = (None if base is None else WidthScaling(base_model_dim=base) for base in (made, rates))
    with pytest.raises(ValueError, match="both or neither"):
        optimisers(widened(32, of_model), mup=of_rates)

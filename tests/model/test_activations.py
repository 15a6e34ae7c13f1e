"""xIELU, ASQU and what is dropped of hidden layers: each against its formula."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from pgolf.model.activations import ASQU, XIELU, at_depth
from pgolf.model.context import Context
from pgolf.model.dropout import NormPercentile
from pgolf.model.mlp import LeakyReLUSquared, SwiGLU
from pgolf.model.repeats import OwnDown, OwnMlp
from pgolf.model.roles import initialise, parameter_roles
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

PUBLISHED = Path(__file__).parents[2] / "conf" / "model" / "mlp" / "xielu.yaml"
CONSTANTS = {"alpha_positive": 1.2, "alpha_negative": 0.5, "beta_positive": 0.1, "beta_negative": 0.4}
TOKENS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def started(part):
    initialise(part, 0)
    torch.nn.init.normal_(part.proj.weight, generator=torch.Generator().manual_seed(1))
    return part


@pytest.mark.parametrize("trainable", [False, True])
def test_xielu_follows_its_two_branches_in_value_and_slope(trainable):
    mlp = started(XIELU(8, 0, 1, multiple=2.0, **CONSTANTS, trainable=trainable))
    n = torch.randn(1, 50, 8)
    h = (n @ mlp.fc.weight.T).detach().requires_grad_()
    expected = torch.where(h > 0, 1.2 * h * h + 0.1 * h, 0.5 * h * h + 0.4 * h)
    torch.testing.assert_close(mlp(n, 0, Context()), expected @ mlp.proj.weight.T)
    mlp.fc.forward = lambda _: h
    mlp.hidden(n).sum().backward()
    torch.testing.assert_close(h.grad, torch.where(h > 0, 2.4 * h + 0.1, 1.0 * h + 0.4).detach())
    assert (mlp.hidden(n)[h < -0.8] > 0).all() and (mlp.hidden(n)[(h < 0) & (h > -0.8)] < 0).all()
    if trainable:
        assert parameter_roles(mlp)["xielu"] == "scalar"
        torch.testing.assert_close(mlp.xielu.grad[1], h[h <= 0].square().sum().detach())


def test_xielu_without_slopes_is_the_squared_leaky_relu():
    constants = {"alpha_positive": 1.0, "alpha_negative": 0.25, "beta_positive": 0.0, "beta_negative": 0.0}
    mlp = started(XIELU(8, 0, 1, multiple=2.0, **constants))
    plain = LeakyReLUSquared(8, 0, 1, multiple=2.0, slope=0.5)
    plain.load_state_dict(mlp.state_dict())
    n = torch.randn(1, 50, 8)
    torch.testing.assert_close(mlp(n, 0, Context()), plain(n, 0, Context()))


def test_the_published_table_has_a_value_for_each_of_eleven_layers():
    table = {key: value for key, value in yaml.safe_load(PUBLISHED.read_text("utf-8")).items() if key in CONSTANTS}
    layers = [XIELU(8, layer, 11, multiple=2.0, **table).values for layer in range(11)]
    assert layers == list(zip(*(table[key] for key in CONSTANTS), strict=True))
    assert layers[2] == (1.415, 0.363, 0.0, 0.405) and layers[10] == (0.917, 0.845, 0.568, 0.52)
    assert [at_depth("x", list(range(11)), layer, 4) for layer in range(4)] == [0, 3, 7, 10]  # a shallower model
    assert at_depth("x", [5.0, 6.0], 0, 1) == 5.0 and at_depth("x", 2, 3, 4) == 2.0
    with pytest.raises(ValueError, match="mlp.alpha_positive is an empty table"):
        XIELU(8, 0, 1, multiple=2.0, **{**CONSTANTS, "alpha_positive": []})


def test_asqu_scales_the_negative_branch_of_every_channel():
    mlp = started(ASQU(8, 0, 1, multiple=2.0, negative_scale=0.25))
    plain = LeakyReLUSquared(8, 0, 1, multiple=2.0, slope=0.5)
    plain.load_state_dict({name: value for name, value in mlp.state_dict().items() if name != "asqu"})
    n = torch.randn(1, 50, 8)
    torch.testing.assert_close(mlp(n, 0, Context()), plain(n, 0, Context()))
    with torch.no_grad():
        mlp.asqu.copy_(torch.arange(16.0) - 8)
    h = n @ mlp.fc.weight.T
    torch.testing.assert_close(mlp.hidden(n), torch.where(h > 0, h * h, (torch.arange(16.0) - 8) * h * h))
    mlp.hidden(n).sum().backward()
    torch.testing.assert_close(mlp.asqu.grad, h.clamp_max(0).square().sum((0, 1)).detach())
    assert parameter_roles(mlp)["asqu"] == "scalar"


def test_the_longest_hidden_vectors_become_zero_in_training_alone():
    drop = NormPercentile(quantile=0.9)
    hidden = torch.randn(2, 50, 8)
    kept = drop(hidden)
    norms = hidden.norm(dim=-1)
    longest = norms >= norms.flatten().quantile(0.9)
    assert longest.sum() == 10
    assert not kept[longest].any() and torch.equal(kept[~longest], hidden[~longest])  # and no rescaling


@pytest.mark.parametrize(
    "parts",
    [{}, {"mlp": partial(SwiGLU, multiple=2.0)}, {"repeat_mlp": OwnDown}, {"repeat_mlp": OwnMlp}],
    ids=["plain", "swiglu", "own down", "own mlp"],
)
def test_dropping_reaches_every_mlp_and_no_evaluation(parts):
    dropping = tiny_model(scramble=0.3, mlp_dropout=NormPercentile(quantile=0.9), **parts)
    plain = tiny_model(scramble=0.3, **parts)
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    for model in (dropping, plain):
        model.set_plan("looped")
    read = []
    for name, module in dropping.named_modules():
        if name.endswith("proj") and "mlp" in name:
            module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    trained = dropping(TOKENS)
    assert not torch.equal(trained, plain(TOKENS)) and len(read) == len(dropping.plan.passes)
    assert all((hidden == 0).all(-1).sum() == 5 for hidden in read)  # 10 % of 48 tokens, rounded up
    dropping.eval()
    assert torch.equal(dropping(TOKENS), plain(TOKENS))
    settings = LoraSettings(
        rank=2, alpha=2.0, targets=["mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-10, weight_decay=0.0
    )
    adapters = Context(adapters=BatchedLora(dropping, 2, settings, 0, "test"))
    dropping.logits(dropping(TOKENS, adapters), adapters).sum().backward()  # adapters learn on what is scored
    assert torch.equal(dropping(TOKENS, adapters), plain(TOKENS))


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_that_drops_all_or_none_is_refused(quantile):
    with pytest.raises(ValueError, match="quantile"):
        NormPercentile(quantile=quantile)

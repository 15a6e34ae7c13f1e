"""Soft-dense experts: the mixture, its costs, its controller, and where experts read the embedding."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pgolf.distributed import Group
from pgolf.model.context import Context
from pgolf.model.equilibrium import Equilibrium, RevDEQ
from pgolf.model.flops import flops_per_token
from pgolf.model.moe import SoftDense
from pgolf.model.norm import rms_norm
from pgolf.model.repeats import OwnDown, OwnMlp
from pgolf.model.reversible import relax
from pgolf.model.roles import initialise, parameter_roles
from tests.model.test_flops import counted, no_attention
from tests.support import ALONE, tiny_model

COSTS = {"balance": 0.3, "min_share": 0.5, "max_spread": 0.7, "bias_rate": 0.1}
SETTINGS = {"multiple": 2.0, "slope": 0.5, "num_experts": 4, **COSTS}
TOKENS = torch.randint(4, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def mixture(dim=8, **settings):
    part = SoftDense(dim, 0, 1, **{**SETTINGS, **settings})
    initialise(part, 0)
    with torch.no_grad():
        for index, parameter in enumerate(part.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(index))
    return part


def by_hand(part, n, experts_read):
    """Every expert by itself, weighted by softmax times sigmoid, not normalised again."""
    router = part.router
    chances = torch.softmax(n @ router.route.weight.T + router.router_bias, -1)
    weights = chances * torch.sigmoid(n @ router.gate.weight.T + router.gate_bias)
    total = torch.zeros_like(n)
    for expert in range(part.num_experts):
        rows = slice(expert * part.width, (expert + 1) * part.width)
        hidden = F.leaky_relu(experts_read @ part.fc.weight[rows].T, part.slope).square()
        total = total + weights[..., expert, None] * (hidden @ part.proj.weight[:, rows].T)
    return total, chances


def observed(part, n):
    """A forward of which the controller takes note."""
    context = Context().begun(TOKENS)
    part(n, 0, context)
    part.observe(context.walk)


def test_a_frozen_gate_is_where_a_learned_one_begins_and_no_parameter():
    frozen, learned = (SoftDense(8, 0, 1, **SETTINGS, frozen_gate=gate) for gate in (True, False))
    for part in (frozen, learned):
        initialise(part, 3)
        with torch.no_grad():
            part.proj.weight.normal_(generator=torch.Generator().manual_seed(1))
    gone = learned.state_dict().keys() - frozen.state_dict().keys()
    assert gone == {"router.gate.weight", "router.gate_bias"}
    assert all(torch.equal(value, learned.state_dict()[name]) for name, value in frozen.state_dict().items())
    n = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(frozen(n, 0, Context()), learned(n, 0, Context()))
    chances, weights = frozen.router(n)
    torch.testing.assert_close(weights, chances * torch.sigmoid(torch.tensor(5.0)))
    frozen(n, 0, Context()).square().sum().backward()
    assert frozen.router.route.weight.grad.any()


def test_all_experts_are_evaluated_and_weighted():
    part, n = mixture(), torch.randn(2, 7, 8)
    assert part.fc.weight.shape == (16, 8) and part.width == 4
    expected, _ = by_hand(part, n, n)
    torch.testing.assert_close(part(n, 0, Context()), expected, rtol=1e-4, atol=1e-4)


def test_a_new_router_is_nearly_even_and_nearly_open():
    part = SoftDense(8, 0, 1, **SETTINGS)
    initialise(part, 0)
    chances, weights = part.router(torch.randn(2, 7, 8))
    torch.testing.assert_close(chances, torch.full_like(chances, 0.25), rtol=0, atol=0.05)
    torch.testing.assert_close(weights, chances * torch.sigmoid(torch.tensor(5.0)))
    roles = parameter_roles(part)
    assert {roles[f"router.{name}"] for name in ("route.weight", "gate.weight")} == {"gate"}


def test_costs_follow_their_formulas_in_training_alone():
    part, n = mixture(), torch.randn(2, 7, 8)
    context = Context().begun(TOKENS)
    for visits in (1, 2):
        part(n, 0, context)
        shares = by_hand(part, n, n)[1].flatten(0, 1).mean(0)
        expected = {
            "experts_balance": 0.3 * (shares - 0.25).square().mean(),
            "experts_min_share": 0.5 * (0.15 - shares).clamp_min(0).square().mean(),
            "experts_max_spread": 0.7 * (shares.std(correction=0) / shares.mean() - 0.2).clamp_min(0).square(),
        }
        assert context.walk.costs.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(context.walk.costs[name], visits * value)
            assert value > 0
    context.walk.costs["experts_balance"].backward()
    assert part.router.route.weight.grad.any() and part.router.router_bias.grad is None
    context = Context().begun(TOKENS)
    part.eval()(n, 0, context)
    assert not context.walk.costs


def test_even_shares_cost_nothing():
    part, context = mixture(), Context().begun(TOKENS)
    with torch.no_grad():
        part.router.route.weight.zero_()
        part.router.router_bias.zero_()
    part(torch.randn(2, 7, 8), 0, context)
    assert sum(context.walk.costs.values()).abs() < 1e-12


def test_the_controller_moves_the_bias_towards_an_even_share():
    part, n = mixture(), torch.randn(2, 7, 8)
    observed(part, torch.randn(2, 7, 8))  # a rehearsal, which does not count
    part.begin_step(0)
    before = part.router.router_bias.detach().clone()
    for rows in n[:, None]:
        observed(part.train(), rows)
        observed(part.eval(), torch.randn(2, 7, 8))  # nor does a score
    shares = by_hand(part, n, n)[1].flatten(0, 1).mean(0)
    part.end_step(ALONE)
    torch.testing.assert_close(part.router.router_bias, before + 0.1 * (0.25 - shares))
    model = tiny_model(mlp=partial(SoftDense, **SETTINGS), repeat_mlp=OwnMlp)
    model.set_plan("looped")
    model(TOKENS)
    assert [part.seen[-1] for part in model.controlled] == [TOKENS.numel()] * 6 and not tiny_model().controlled
    model = tiny_model(mlp=partial(SoftDense, **SETTINGS))
    model.set_plan("looped")
    model(TOKENS)
    assert [part.seen[-1] for part in model.controlled] == [n * TOKENS.numel() for n in (1, 2, 2, 1)]


def test_two_ranks_move_it_by_the_tokens_of_both(monkeypatch):
    one, two, n = mixture(), mixture(), torch.randn(2, 7, 8)
    for part in (one, two):
        part.begin_step(0)
    other = mixture()
    observed(one, n)
    observed(two, n[:1])
    observed(other, n[1:])
    group = Group(0, 2, torch.device("cpu"))
    monkeypatch.setattr(group, "sum_", lambda tensor: tensor.add_(other.seen))
    one.end_step(ALONE)
    two.end_step(group)
    torch.testing.assert_close(one.router.router_bias, two.router.router_bias)


def test_experts_alone_read_the_embedding():
    model = tiny_model(scramble=0.3, mlp=partial(SoftDense, **SETTINGS, inject=0.5))
    given = []
    part = model.blocks[2].mlp
    part.register_forward_hook(lambda module, inputs, result: given.append((inputs[0], result)))
    model(TOKENS)
    x0 = rms_norm(model.tok_emb(TOKENS))
    n, result = given[0]
    torch.testing.assert_close(result, by_hand(part, n, n + part.inject * x0)[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(RuntimeError, match="normed embedding"):
        part(n, 0, Context())
    without = tiny_model(mlp=partial(SoftDense, **SETTINGS))
    assert "blocks.0.mlp.inject" not in without.state_dict()


def test_experts_share_the_width_rounded_down():
    assert (
        SoftDense(216, 0, 1, **{**SETTINGS, "multiple": 3.25, "num_experts": 3}).width == 234
    )  # 3.25 / 3 * 216 is less
    assert SoftDense(10, 0, 1, **{**SETTINGS, "multiple": 2.5}).width == 6  # of 6.25
    with pytest.raises(ValueError, match="no hidden unit to each of mlp.num_experts=4"):
        SoftDense(3, 0, 1, **{**SETTINGS, "multiple": 1.0})


def test_its_operations_its_repeats_and_its_calibration():
    model = tiny_model(scramble=0.3, mlp=partial(SoftDense, **SETTINGS), repeat_mlp=OwnDown)
    flops = flops_per_token(model, model.plans["looped"], TOKENS.shape[1])
    assert flops.blocks + flops.head == counted(model, "looped", no_attention)
    sites = model.calibration_sites()
    assert sites["blocks.0.mlp.fc.weight"] is model.blocks[0].mlp.fc
    assert "seen" not in " ".join(model.state_dict()) and "blocks.0.mlp.router.router_bias" in model.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"num_experts": 1}, "at least 2"), ({"balance": -1.0}, "mlp.balance"), ({"multiple": 0.1}, "no hidden unit")],
)
def test_impossible_mixtures_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoftDense(8, 0, 1, **{**SETTINGS, **settings})


def solved(monkeypatch, plainly):
    """Cross entropy with costs, and its gradients, of experts inside a block that is solved for its fixed point."""
    mlp = partial(SoftDense, **SETTINGS, inject=0.5)
    parts = {"scramble": 0.2, "num_layers": 2, "num_loops": 0, "mlp": mlp}
    model = tiny_model(**parts, equilibrium=RevDEQ(layer=1, iterations=3, beta=0.35))
    if plainly:  # all steps are remembered
        monkeypatch.setattr(
            Equilibrium, "_solve", lambda self, f, states, count, walk: relax(f, states, count, self.beta, walk)[1]
        )
    context = Context().begun(TOKENS)
    logits = model.logits(model(TOKENS, context), context)
    loss = F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()) + sum(context.walk.costs.values())
    loss.backward()
    return loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, context.walk


def test_experts_in_a_block_that_is_solved_have_their_costs_and_gradients(monkeypatch):
    undone, gradients, walk = solved(monkeypatch, plainly=False)
    plain, expected, _ = solved(monkeypatch, plainly=True)
    torch.testing.assert_close(undone, plain)
    assert gradients.keys() == expected.keys() and gradients["blocks.1.mlp.router.route.weight"].any()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-4)
    assert set(walk.costs) == {"experts_balance", "experts_min_share", "experts_max_spread"}


def test_experts_in_a_block_that_is_solved_are_one_graph():
    mlp = partial(SoftDense, **SETTINGS)
    model = tiny_model(
        scramble=0.2, num_layers=1, num_loops=0, mlp=mlp, equilibrium=RevDEQ(layer=0, iterations=2, beta=0.35)
    )

    def loss(context):
        context = context.begun(TOKENS)
        logits = model.logits(model(TOKENS, context), context)
        return F.cross_entropy(logits.flatten(0, 1), TOKENS.flatten()) + sum(context.walk.costs.values())

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(Context()), loss(Context()))

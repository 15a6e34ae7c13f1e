"""Which optimiser has which parameter, with which options."""

import copy
import json

import pytest
import torch

from pgolf.app import build
from pgolf.model.mup import WidthScaling
from pgolf.optim.clip import GlobalNorm
from pgolf.optim.exchange import GradientExchange
from pgolf.optim.roles import NameRule
from tests.optim.small import DIM, Net, backward, optimisers
from tests.shipped import job
from tests.support import ALONE, GOLDEN


def row_of(made, name):
    return next(row for row in made.table() if row["name"] == name)


def composed(*overrides):
    """The model on the meta device and the factory of its optimisers, of a composed configuration."""
    chosen = job("scale=full", *overrides)
    assert not chosen.refusals
    with torch.device("meta"):
        model = build.build(chosen.config["model"], "model")(8192, 0)
    return model, build.build(chosen.config["optim"], "optim")


def test_every_parameter_belongs_to_one_optimiser():
    model = Net()
    made = optimisers(model)
    owned = [id(p) for one in made for group in one.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())
    assert [row["name"] for row in made.table()] == [name for name, _ in model.named_parameters()]
    assert row_of(made, "up.0.weight")["optimizer"] == "Muon" and row_of(made, "gain")["group"] == "scalar"


def test_a_role_without_an_optimiser_is_refused():
    with pytest.raises(ValueError, match="optim.gate is absent.*1 parameters.*gate"):
        optimisers(Net(), gate=None)


@pytest.mark.skipif(not (GOLDEN / "optimizer_groups.json").exists(), reason="no reference data beside the checkout")
@pytest.mark.parametrize("script", ["1736", "1855"])
def test_the_default_options_are_the_published_ones(script):
    """conf/optim/muon.yaml, of a model with gates and smear, against the groups of the published scripts."""
    groups = json.loads((GOLDEN / "optimizer_groups.json").read_text())["groups"][script]
    model, factory = composed("model/attention/gate=full", "model/smear=smear", "model/lanes=two_lane")
    published = {"embedding": groups["tok"][0], "scalar": groups["scalar"][0], "gate": groups["scalar"][0]}
    rows = factory(model).table()
    assert {row["group"] for row in rows} == {"embedding", "matrix", "scalar", "gate"}
    for row in rows:
        for option in ("lr", "betas", "eps", "weight_decay") if row["group"] in published else ():
            got = list(row[option]) if option == "betas" else row[option]
            assert got == published[row["group"]][option], (row["name"], option)
        if row["group"] == "matrix":
            muon = groups["muon"][0]
            for ours, theirs in {"newton_schulz_steps": "backend_steps", "row_normalise": "row_normalize"}.items():
                assert row[ours] == muon[theirs]
            assert all(row[option] == muon[option] for option in ("lr", "momentum", "nesterov", "weight_decay"))


@pytest.mark.parametrize("part", ["gradient=power", "precondition=mousse", "rescale=normuon", "rescale=unit_rows"])
def test_every_part_of_muon_can_be_composed(part):
    model, factory = composed(f"optim/matrix/{part}", "optim/mup=width")
    name, _, choice = part.partition("=")
    assert getattr(factory(model).optimizers["matrix"], name) is not None, choice


def test_a_rule_sends_names_to_another_optimiser_with_options_of_their_own():
    rules = [
        NameRule(pattern="down.0.*", role="scalar", options={"lr": 0.5}),
        NameRule(pattern="down.*", options={"lr": 0.3, "momentum": 0.7}),
        NameRule(pattern="square.1.weight", role="scalar"),
    ]
    made = optimisers(Net(), rules=rules)
    first, rest, moved = (row_of(made, name) for name in ("down.0.weight", "down.4.weight", "square.1.weight"))
    assert (first["group"], first["lr"]) == ("scalar", 0.5)
    assert (rest["group"], rest["lr"], rest["momentum"]) == ("matrix", 0.3, 0.7)
    assert (moved["group"], moved["lr"]) == ("scalar", 0.01)
    made.schedule(0.5, None)
    assert row_of(made, "down.4.weight")["lr"] == 0.15 and row_of(made, "up.0.weight")["lr"] == 0.01


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (NameRule(pattern="nothing.*", role="scalar"), "'nothing.\\*' matches no parameter"),
        (NameRule(pattern="down.*", options={"betas": 0.1}), "sets betas; Muon takes lr, momentum"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        optimisers(Net(), rules=[rule])


def test_a_rule_names_a_role_that_exists():
    with pytest.raises(ValueError, match="role=matrices.*matrix, embedding"):
        NameRule(pattern="*", role="matrices")


def test_schedule_scales_from_base_values():
    made = optimisers(Net())
    made.schedule(0.5, 0.7, 0.9)
    made.schedule(0.25, 0.8, 0.5)
    matrix, scalar = row_of(made, "up.0.weight"), row_of(made, "gain")
    assert (matrix["lr"], matrix["momentum"], matrix["weight_decay"]) == (0.02 * 0.25, 0.8, 0.05)
    assert (scalar["lr"], scalar["weight_decay"]) == (0.01 * 0.25, 0.05)  # the taper is for matrices alone


def test_exchange_of_one_clips_like_torch_and_reports_the_norm_before():
    ours, theirs = Net(), Net()
    for model in (ours, theirs):
        backward(model, 0, ALONE)
    made, extra = optimisers(ours), torch.tensor(3.0)
    norm = GradientExchange(made, ALONE, GlobalNorm(norm=0.1)).average([extra])
    assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)) and float(extra) == 3.0
    assert all(torch.equal(x.grad, y.grad) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))
    before = [parameter.grad.clone() for parameter in theirs.parameters()]
    assert float(GradientExchange(optimisers(theirs), ALONE, None).average()) == pytest.approx(0.1, rel=1e-4)
    assert all(torch.equal(x, y.grad) for x, y in zip(before, theirs.parameters(), strict=True))


def test_mup_multiplies_learning_rates_by_role_and_input():
    plain, scaled = optimisers(Net()), optimisers(Net(), mup=WidthScaling(base_model_dim=DIM // 2))
    ratio = {row["name"]: row["lr"] / row_of(plain, row["name"])["lr"] for row in scaled.table()}
    assert ratio["embedding"] == ratio["gain"] == ratio["up.0.weight"] == 1.0  # Muon's updates know their shape
    assert ratio["head.weight"] == ratio["gate"] == 0.5
    same = optimisers(Net(), mup=WidthScaling(base_model_dim=DIM))
    assert same.table() == plain.table()
    scaled.schedule(0.5, None)
    assert row_of(scaled, "head.weight")["lr"] == 0.01 * 0.5 * 0.5


def test_state_goes_through_the_optimisers_of_all_roles():
    one, two = Net(), Net()
    first, second = optimisers(one), optimisers(two)
    for step in range(4):
        backward(one, step, ALONE)
        first.step()
        first.zero_grad()
        if step == 1:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            two.load_state_dict(one.state_dict())
        if step > 1:
            backward(two, step, ALONE)
            second.step()
            second.zero_grad()
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))

"""Muon: the iteration, one step by its formula, torch's optimiser, and what is absent unless asked for."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.optim.muon import Muon
from pgolf.optim.newton_schulz import POLAR_EXPRESS, STOCK, orthogonalise
from pgolf.optim.transforms import DiagonalMousse, NorMuon, SignedPower, UnitRows, unit_rows
from tests.optim.small import POLAR
from tests.optim.small import STOCK as PLAIN

SHAPES = [(8, 8), (12, 6), (6, 12), (8, 8), (12, 6)]


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(step, *models):
    generator = torch.Generator().manual_seed(100 + step)
    for index, shape in enumerate(SHAPES):
        gradient = torch.randn(shape, generator=generator)
        for model in models:
            model[index].grad = gradient.to(model[index].dtype)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_where_their_settings_coincide(nesterov, monkeypatch):
    """torch's iterates in bf16, where the last bits decide; told to cast to fp32 instead, it makes the same numbers."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.to(torch.float32, copy=True))
    ours, theirs = parameters(), parameters()
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, **{**PLAIN, "nesterov": nesterov})
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=nesterov, ns_steps=5, eps=1e-7)
    for step in range(5):
        give_gradients(step, ours, theirs)
        a.step()
        b.step()
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).norm() <= 2e-6 * y.norm()


def by_hand(weights, lr, options, steps):
    """The formula of the class, matrix by matrix, in the weights' dtype."""
    buffers = [torch.zeros_like(weight) for weight in weights]
    memory = [{} for _ in weights]
    for step in range(steps):
        holders = [torch.nn.Parameter(weight) for weight in weights]
        give_gradients(step, holders)
        for index, holder in enumerate(holders):
            g = holder.grad[None]
            g = options["gradient"](g) if options.get("gradient") else g
            buffers[index] = 0.5 * buffers[index] + g[0]
            u = g + 0.5 * buffers[index][None] if options["nesterov"] else buffers[index][None]
            u = options["precondition"](u) if options.get("precondition") else u
            u = u / u.norm(dim=-1, keepdim=True) if options["row_normalise"] else u
            o = orthogonalise(u, 5, POLAR_EXPRESS if options["coefficients"] == "polar_express" else STOCK)
            if options.get("rescale"):
                memory[index] = memory[index] or options["rescale"].initial_state(1, *SHAPES[index], o.device)
                o = options["rescale"](o, memory[index])
            rows, cols = SHAPES[index]
            weights[index] = weights[index] * (1 - lr * 0.2) - lr * max(1, rows / cols) ** 0.5 * o[0]
    return weights


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"gradient": SignedPower(exponent=0.9)},
        {"precondition": DiagonalMousse()},
        {"rescale": UnitRows()},
        {"rescale": NorMuon()},
        {"gradient": SignedPower(exponent=0.5), "precondition": DiagonalMousse(), "rescale": NorMuon(beta=0.5)},
    ],
    ids=["plain", "power", "mousse", "unit_rows", "normuon", "all"],
)
def test_batches_of_banks_do_what_the_formula_says_of_each_matrix(extra):
    options = {**POLAR, **extra}
    ours = parameters(dtype=torch.float64)
    expected = by_hand([one.detach().clone() for one in ours], 0.1, options, 3)
    muon = Muon(ours, lr=0.1, momentum=0.5, weight_decay=0.2, **options)
    for step in range(3):
        give_gradients(step, ours)
        muon.step()
    for got, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.detach(), value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "neutral", [{"gradient": SignedPower(exponent=1.0)}, {"gradient": None, "precondition": None, "rescale": None}]
)
def test_what_does_nothing_gives_the_bits_of_its_absence(neutral):
    ours, plain = parameters(), parameters()
    a = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, **POLAR, **neutral)
    b = Muon(plain, lr=0.02, momentum=0.9, weight_decay=0.1, **POLAR)
    for step in range(3):
        give_gradients(step, ours, plain)
        a.step()
        b.step()
    assert all(torch.equal(x, y) for x, y in zip(ours, plain, strict=True))
    assert a.state_dict()["state"][0].keys() == {"momentum_buffer"}


def test_a_matrix_without_gradient_keeps_its_weight_and_its_state():
    ours, others = parameters(), parameters()
    muon = Muon(ours, lr=0.1, momentum=0.5, weight_decay=0.2, **POLAR, rescale=NorMuon())
    alone = Muon(others[3:4], lr=0.1, momentum=0.5, weight_decay=0.2, **POLAR, rescale=NorMuon())
    for step in range(3):
        give_gradients(step, ours, others)
        if step == 1:
            before = ours[0].detach().clone()
            state = {name: value.clone() for name, value in muon.state_dict()["state"][0].items()}
            ours[0].grad = None
        muon.step()
        alone.step()
        if step == 1:
            assert torch.equal(ours[0], before)
            assert all(torch.equal(value, state[name]) for name, value in muon.state_dict()["state"][0].items())
    torch.testing.assert_close(ours[3], others[3])  # its neighbour in the bank


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "bf16_iteration", "bf16_update", "bf16_fast"])
def test_a_state_continues_to_the_same_bits_in_every_precision(precision):
    ours, again = parameters(), parameters()
    make = {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, **POLAR, "precision": precision, "rescale": NorMuon()}
    a, b = Muon(ours, **make), Muon(again, **make)
    for step in range(4):
        give_gradients(step, ours, again)
        a.step()
        if step == 1:
            b.load_state_dict(a.state_dict())
            for x, y in zip(ours, again, strict=True):
                y.data.copy_(x.data)
        if step > 1:
            b.step()
    assert all(torch.equal(x, y) for x, y in zip(ours, again, strict=True))


def test_an_empty_state_takes_the_momentum_away():
    ours, fresh = parameters(), parameters()
    a, b = (Muon(one, lr=0.1, momentum=0.9, weight_decay=0.0, **POLAR) for one in (ours, fresh))
    give_gradients(0, ours)
    a.step()
    a.load_state_dict({**a.state_dict(), "state": {}})
    for x, y in zip(ours, fresh, strict=True):
        y.data.copy_(x.data)
    give_gradients(1, ours, fresh)
    a.step()
    b.step()
    assert all(torch.equal(x, y) for x, y in zip(ours, fresh, strict=True))


def test_muon_refuses_what_it_cannot_do():
    make = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    with pytest.raises(ValueError, match="matrices; got a parameter of shape \\(3,\\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], **make, **PLAIN)
    with pytest.raises(ValueError, match="newton_schulz_steps=6.*at most 5"):
        Muon(parameters(), **make, **{**POLAR, "newton_schulz_steps": 6})
    Muon(parameters(), **make, **{**PLAIN, "newton_schulz_steps": 12})
    plain, other = (Muon(parameters(), **make, **POLAR, rescale=one) for one in (None, NorMuon()))
    with pytest.raises(ValueError, match="has momentum_buffer; .* it has momentum_buffer, second_moment"):
        other.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="before the first step"):
        plain.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, 2))]})


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_rescalings_keep_shape_and_stay_finite(n, rows, cols, seed):
    batch = torch.randn(n, rows, cols, generator=torch.Generator().manual_seed(seed))
    batch[0, 0] = 0.0  # a row without update
    for rescale in (UnitRows(), NorMuon()):
        out = rescale(batch, rescale.initial_state(n, rows, cols, batch.device))
        assert out.shape == batch.shape and out.isfinite().all() and not out[0, 0].any()
    norms = unit_rows(batch)[:, 1:].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_normuon_evens_rows_out_and_keeps_the_norm():
    updates = torch.diag(torch.tensor([1.0, 2.0, 3.0]))[None]
    rescale = NorMuon(beta=0.0)
    out = rescale(updates, rescale.initial_state(1, 3, 3, updates.device))
    torch.testing.assert_close(out.norm(), updates.norm())
    torch.testing.assert_close(out.norm(dim=-1), torch.full((1, 3), float(updates.norm()) / 3**0.5))


def test_mousse_on_a_matrix_worked_by_hand():
    out = DiagonalMousse()(torch.tensor([[[3.0, 0.0], [4.0, 5.0]]]))
    rows, columns = [3.0, 41**0.5], [5.0, 5.0]
    torch.testing.assert_close(
        out, torch.tensor([[[3 / rows[0] / columns[0], 0.0], [4 / rows[1] / 5, 5 / rows[1] / 5]]])
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SignedPower(exponent=0.0), "exponent=0.0"),
        (lambda: DiagonalMousse(floor=0.0), "floor=0.0"),
        (lambda: NorMuon(beta=1.0), "beta=1.0"),
    ],
)
def test_impossible_parts_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -0.1), ("lr", float("nan")), ("momentum", 1.0), ("weight_decay", -1)]
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} of Muon must lie in"):
        Muon(parameters(), **{"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, **PLAIN, name: value})


@pytest.mark.parametrize("options", [PLAIN, POLAR], ids=["stock", "polar"])
def test_the_gram_form_trains_as_the_direct_one(options):
    ours, others = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    same = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, **options}
    a, b = Muon(ours, **same, newton_schulz="gram"), Muon(others, **same)
    for step in range(3):
        give_gradients(step, ours, others)
        a.step()
        b.step()
    for x, y in zip(ours, others, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_banks_that_are_cut_to_the_caches_make_the_same_steps_and_states(monkeypatch):
    ours, others = parameters(), parameters()
    same = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1, **POLAR, "rescale": NorMuon()}
    whole = Muon(others, **same)
    give_gradients(0, others)
    whole.step()
    monkeypatch.setattr("pgolf.optim.muon.CACHED", 1)
    cut = Muon(ours, **same)
    give_gradients(0, ours)
    cut.step()
    assert len(cut._banks) == len(SHAPES) > len(whole._banks)
    for position, state in whole.state_dict()["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(cut.state_dict()["state"][position][name], value)
    cut.load_state_dict(whole.state_dict())
    for x, y in zip(ours, others, strict=True):
        torch.testing.assert_close(x, y)

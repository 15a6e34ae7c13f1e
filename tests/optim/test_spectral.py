"""The cap on singular values: by its formula, in Muon's step, and where there is nothing to scale."""

import copy

import pytest
import torch

from pgolf.optim.muon import Muon
from pgolf.optim.spectral import SpectralCap
from tests.optim import small
from tests.optim.small import POLAR
from tests.support import ALONE


def matrices(*largest, rows=6, cols=4):
    """Of given largest singular values, the second half of each."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for one in largest:
        u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
        v, _ = torch.linalg.qr(torch.randn(cols, cols, generator=generator))
        least = min(rows, cols)
        spectrum = torch.tensor([one, *[one / 2] * (least - 1)])
        found.append(u[:, :least] * spectrum @ v[:, :least].T)
    return torch.stack(found)


@pytest.mark.parametrize(("rows", "cols"), [(6, 4), (4, 6), (5, 5), (1, 7)])
def test_factors_bring_the_largest_singular_value_to_the_cap(rows, cols):
    cap = SpectralCap(cap=2.0, iterations=40)
    weights = matrices(3.0, 1.0, 2.0, 8.0, rows=rows, cols=cols)
    factors = cap.factors(weights, cap.initial_state(4, rows, cols, weights.device))
    torch.testing.assert_close(factors, torch.tensor([2 / 3, 1.0, 1.0, 0.25]), rtol=1e-5, atol=1e-6)


def test_one_iteration_by_hand():
    cap, weight = SpectralCap(cap=1.0, iterations=1), torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    state = {"singular_vector": torch.tensor([[0.6, 0.8]])}
    u = torch.tensor([1.8, 0.8]) / (1.8**2 + 0.8**2) ** 0.5
    after = torch.tensor([3.0, 1.0]) * u
    torch.testing.assert_close(cap.factors(weight, state), 1.0 / after.norm()[None])
    torch.testing.assert_close(state["singular_vector"], (after / after.norm())[None])


def test_the_vector_follows_over_steps_and_never_exceeds_the_norm():
    cap, weight = SpectralCap(cap=1e-3, iterations=1), matrices(3.0, rows=20, cols=30)
    state, found = cap.initial_state(1, 20, 30, weight.device), []
    for _ in range(25):
        found.append(1e-3 / float(cap.factors(weight, state)))
    assert all(one <= 3.0 * (1 + 1e-6) for one in found) and found[:6] == sorted(found[:6])
    assert found[0] < 2.9 and found[-1] == pytest.approx(3.0, rel=1e-4)


def test_a_matrix_of_zeros_is_left_alone_and_found_when_it_grows():
    cap, weight = SpectralCap(cap=1.0, iterations=2), torch.zeros(1, 4, 3)
    state = cap.initial_state(1, 4, 3, weight.device)
    begun = state["singular_vector"].clone()
    assert cap.factors(weight, state).item() == 1.0 and torch.equal(state["singular_vector"], begun)
    weight[0, 0, 0] = 5.0
    assert cap.factors(weight, state).item() == pytest.approx(0.2, rel=1e-5)


def stepped(cap, steps=12, begun=None, rate=0.5):
    parameter = torch.nn.Parameter(matrices(1.0)[0] if begun is None else begun.clone())
    optimizer = Muon([parameter], lr=rate, momentum=0.9, weight_decay=0.0, cap=cap, **POLAR)
    slope = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        parameter.grad = slope.clone()
        optimizer.step()
    return parameter.detach(), optimizer


def test_muon_keeps_matrices_within_the_cap():
    free, _ = stepped(None)
    capped, optimizer = stepped(SpectralCap(cap=1.5, iterations=2))
    norm = torch.linalg.matrix_norm
    assert norm(free, 2) > 3.0 and norm(capped, 2) == pytest.approx(1.5, rel=1e-3)
    assert optimizer.state_dict()["state"][0]["singular_vector"].shape == (4,)


def test_a_cap_that_is_not_reached_changes_no_bit():
    free, _ = stepped(None)
    capped, _ = stepped(SpectralCap(cap=1e6, iterations=1))
    assert torch.equal(free, capped)


def test_a_matrix_without_a_gradient_is_not_touched():
    weights = [torch.nn.Parameter(one) for one in matrices(3.0, 5.0)]
    optimizer = Muon(weights, lr=0.0, momentum=0.9, weight_decay=0.0, cap=SpectralCap(cap=1.0, iterations=30), **POLAR)
    before = weights[1].detach().clone()
    weights[0].grad = torch.ones(6, 4)
    optimizer.step()
    assert torch.linalg.matrix_norm(weights[0].detach(), 2) == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(weights[1], before)


def test_it_is_of_the_role_of_matrices_alone():
    """In the model of every role: no matrix exceeds the cap, and the others are not looked at."""
    found = small.train("spectral cap", ALONE)
    matrix = [name for name in found["weights"] if name.split(".")[0] in ("square", "up", "down")]
    largest = {name: float(torch.linalg.matrix_norm(found["weights"][name], 2)) for name in matrix}
    assert max(largest.values()) <= 0.9 * 1.01
    plain = small.train("polar express", ALONE)["weights"]
    assert max(float(torch.linalg.matrix_norm(plain[name], 2)) for name in matrix) > 1.0
    assert torch.linalg.matrix_norm(found["weights"]["embedding"], 2) > 0.9 * 1.1


def test_a_state_without_vectors_is_another_optimisers():
    _, optimizer = stepped(SpectralCap(cap=1.5, iterations=2))
    _, plain = stepped(None)
    with pytest.raises(ValueError, match="singular_vector"):
        optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))


@pytest.mark.parametrize(("cap", "iterations"), [(0.0, 1), (-1.0, 1), (1.0, 0)])
def test_what_caps_nothing_is_refused(cap, iterations):
    with pytest.raises(ValueError, match="must be positive and iterations"):
        SpectralCap(cap=cap, iterations=iterations)

"""Optimisers over ranks: one, two, four and eight make the same weights, and states go from any number to any other."""

from pathlib import Path

import pytest
import torch

from pgolf.optim.banks import NO_REDUCE_SCATTER
from pgolf.optim.clip import LocalNorm, shorten, total_norm
from tests.optim import small
from tests.support import ALONE, run_ranks

NEAR = 1e-5
SEEN = {
    2: list(small.VARIANTS),
    4: ["polar express", "normuon", "no reduce-scatter"],
    8: ["polar express", "no reduce-scatter"],
}
PAIRS = [(world_size, variant) for world_size, variants in SEEN.items() for variant in variants]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of ranks made, by that number."""
    found = {}
    for world_size, variants in SEEN.items():
        out = tmp_path_factory.mktemp("ranks") / f"{world_size}.pt"
        run_ranks(Path(small.__file__), world_size, out, ",".join(variants))
        found[world_size] = torch.load(out)
    return found


def far(got: dict, expected: dict) -> list[str]:
    """Weights that differ, and "norms" where those do."""
    differ = [
        name
        for name, value in expected["weights"].items()
        if not (got["weights"][name] - value).norm() <= NEAR * value.norm()
    ]
    return differ + (["norms"] if got["norms"] != pytest.approx(expected["norms"], rel=1e-4) else [])


@pytest.mark.parametrize(("world_size", "variant"), PAIRS)
def test_ranks_train_like_one(results, world_size, variant):
    assert not far(results[world_size][variant]["whole"], small.train(variant, ALONE))


@pytest.mark.parametrize(("world_size", "variant"), PAIRS)
def test_a_state_is_whole_and_goes_to_any_number_of_ranks(results, world_size, variant):
    found = results[world_size][variant]
    for name, value in found["whole"]["weights"].items():
        assert torch.equal(found["continued"]["weights"][name], value), name
    assert not far(small.train(variant, ALONE, start=found["half"]), found["whole"])
    alone = small.train(variant, ALONE, small.STEPS // 2)
    assert found["half"]["optimisers"].keys() == alone["optimisers"].keys()
    for role, state in alone["optimisers"].items():
        for position, tensors in state["state"].items():
            for name, value in tensors.items():
                got = found["half"]["optimisers"][role]["state"][position][name]
                assert (got - value).norm() <= 1e-4 * value.norm() + 1e-12, (role, position, name)


@pytest.mark.parametrize("world_size", SEEN)
def test_a_detour_of_the_back_end_is_said(results, world_size):
    ranks = results[world_size]
    assert ranks["no reduce-scatter"]["whole"]["remarks"] == [NO_REDUCE_SCATTER]
    assert ranks["polar express"]["whole"]["remarks"] == []


@pytest.mark.parametrize("world_size", SEEN)
def test_local_clipping_clips_before_the_average(results, world_size):
    """One step by hand: every rank's gradient is shortened on its own, and the mean goes to the optimisers."""
    model, sums, norms = small.Net(), {}, []
    for rank in range(world_size):
        model.zero_grad()
        small.backward(model, 0, type("Rank", (), {"rank": rank, "world_size": world_size}))
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        norm = total_norm(list(gradients.values()))
        shorten(gradients.values(), norm, LocalNorm(norm=0.01).limit(norm))
        norms.append(float(norm))
        for name, gradient in gradients.items():
            sums[name] = sums.get(name, 0.0) + gradient.clone() / world_size
    made = small.optimisers(model, "stock")
    for name, parameter in model.named_parameters():
        parameter.grad = sums[name]
    made.schedule(1.0, 0.85)
    made.step()
    got = results[world_size]["local clip"]["whole"]
    assert got["norms"] == pytest.approx([sum(norms) / world_size])
    for name, value in model.state_dict().items():
        assert (got["weights"][name] - value).norm() <= NEAR * value.norm(), name

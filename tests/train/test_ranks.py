"""Training over ranks: one, two and four gloo processes make the same weights, and a state goes from one number to
another."""

from pathlib import Path

import pytest
import torch

from tests.support import ALONE, run_ranks
from tests.train import small

NEAR = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of ranks made of the same text; two of them went on from where one had stopped, too."""
    found = {1: small.both(tmp_path_factory.mktemp("alone"), ALONE)}
    for world_size in (2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{world_size}")
        with pytest.raises(KeyboardInterrupt):
            small.cut_off(folder, ALONE)
        run_ranks(Path(small.__file__), world_size, folder, folder / "out.pt")
        found[world_size] = torch.load(folder / "out.pt")
    return found


@pytest.mark.parametrize("name", list(small.VARIANTS))
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_train_like_one(results, world_size, name):
    one, several = results[1][name], results[world_size][name]
    assert several["losses"] == pytest.approx(one["losses"], rel=NEAR)
    assert several["norms"] == pytest.approx(one["norms"], rel=1e-4)
    for kind in ("average", "weights"):
        for key, value in one[kind].items():
            assert (value - several[kind][key]).norm() <= NEAR * value.norm() + 1e-6, (kind, key)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_go_on_where_one_stopped(results, world_size):
    """And the jump of one rank's clock moves no schedule: all follow the leader's."""
    whole, rest = results[1]["plain"], results[world_size]["continued"]
    assert rest["losses"] == pytest.approx(whole["losses"][small.CUT :], rel=NEAR)
    for key, value in whole["weights"].items():
        assert (value - rest["weights"][key]).norm() <= NEAR * value.norm() + 1e-6, key


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_follow_the_leaders_clock(results, world_size):
    """The clocks of the other ranks run ahead by a day."""
    settings = results[world_size]["clocks"]
    assert len(settings) == world_size and len(settings[0]) > 3
    assert all(one == settings[0] for one in settings[1:])
    assert {plan for _, plan in settings[0]} == {"plain", "looped"}

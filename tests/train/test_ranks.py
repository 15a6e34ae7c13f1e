"""Training over ranks: one, two and four gloo processes make the same weights, and a state goes from one number of
ranks to another."""

from pathlib import Path

import pytest
import torch

from tests.support import run_ranks
from tests.train import small

NEAR = 1e-5


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each number of ranks made of the same text."""
    found = {}
    for world_size in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"ranks{world_size}")
        run_ranks(Path(small.__file__), world_size, folder, folder / "out.pt")
        found[world_size] = torch.load(folder / "out.pt")
    return found


@pytest.mark.parametrize("name", ["plain", "staged"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_train_like_one(results, world_size, name):
    one, several = results[1][name], results[world_size][name]
    assert several["losses"] == pytest.approx(one["losses"], rel=NEAR)
    assert several["norms"] == pytest.approx(one["norms"], rel=1e-4)
    for kind in ("average", "weights"):
        for key, value in one[kind].items():
            assert (value - several[kind][key]).norm() <= NEAR * value.norm() + 1e-6, (kind, key)

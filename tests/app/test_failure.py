"""Who failed: a rank by name, or all of them where they say the same."""

from pathlib import Path

from pgolf.app import failure
from pgolf.errors import UserError


def test_a_failure_that_ranks_share_names_none_of_them(tmp_path: Path) -> None:
    (tmp_path / failure.FOLDER).mkdir()
    own = failure.record(tmp_path, 1, UserError("its disk is full"))
    assert failure.sentence(own, tmp_path, 2) == "rank 1: its disk is full"
    assert failure.sentence(own, tmp_path, 1) == "its disk is full"
    for rank in (0, 1):
        shared = failure.record(tmp_path, rank, UserError("the training loss became nan at step 3"))
    assert failure.sentence(shared, tmp_path, 2) == "the training loss became nan at step 3"

"""A proposal is written before its runs and cannot hold a score."""

from pathlib import Path

import pytest

from pgolf.errors import UserError
from pgolf.files import read_json, write_json
from pgolf.report.proposal import STATUS, Configuration, Package, scored_keys, write_proposal


def package(**changes) -> Package:
    settings = {"_target_": "pgolf.model.gpt.GPT", "dim": 8, "loss": {"weights": 1}}
    first = Configuration("baseline", "abc", 10, 4.0, "--seconds", {}, {"model": settings})
    other = Configuration("wide", "abd", 20, 4.0, "--seconds", {"model.dim": "16"}, {"model": {**settings, "dim": 16}})
    made = {
        "title": "Wide",
        "command": "pgolf --multirun model.dim=8,16 seed=1,2",
        "seeds": [1, 2],
        "configurations": [first, other],
        "runs": 4,
        "hours": 16.0,
        "prices": {"8xH100": 20.0},
    }
    return Package(**(made | changes))


def test_a_package_says_what_would_be_run_and_what_it_costs(tmp_path: Path) -> None:
    written = write_proposal(tmp_path / "new", package(mismatches=["4 x 3 is 12, not 8"], remarks=["by hand"]))
    assert [path.name for path in written] == ["proposal.json", "proposal.md"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["proposal.json", "proposal.md"]
    content, text = read_json(written[0]), written[1].read_text("utf-8")
    assert content["status"] == STATUS and content["seeds"] == [1, 2] and content["runs"] == 4
    assert content["configurations"][1]["config"]["model"]["dim"] == 16
    for part in ("pgolf --multirun", "seeds 1, 2", "| 8xH100 | 20.00 | 16.0 | 320.00 |", "not 8", "`model.dim`: 16"):
        assert part in text
    assert STATUS in text and list(scored_keys(content)) == []
    assert write_proposal(tmp_path / "new", package()) == written  # its own files are no hindrance


@pytest.mark.parametrize("key", ["val_bpb", "bpb", "val_loss", "final_bpb", "score", "bpb_of_part", "nats_final"])
def test_nothing_in_a_package_can_hold_a_score(tmp_path: Path, key: str) -> None:
    config = {"model": {"deep": [{"deeper": {key: 1.07}}]}}
    claiming = Configuration("baseline", "abc", 10, None, "nothing", {}, config)
    with pytest.raises(UserError, match=f"cannot hold a score, and .*{key} would be one"):
        write_proposal(tmp_path / "new", package(configurations=[claiming]))
    assert not (tmp_path / "new").exists()


def test_hours_that_are_not_known_are_not_made_up(tmp_path: Path) -> None:
    written = write_proposal(tmp_path / "new", package(hours=None))
    assert "Not known for all runs" in written[1].read_text("utf-8") and read_json(written[0])["hours"] is None


@pytest.mark.parametrize("name", ["summary.json", "submission.json", "seed_42/scores.npz"])
def test_a_folder_with_a_score_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(UserError, match="a proposal has no score, and lies in a folder of its own"):
        write_proposal(tmp_path, package())
    assert not (tmp_path / "proposal.json").exists()


def test_a_figure_in_another_file_is_found_too(tmp_path: Path) -> None:
    write_json(tmp_path / "notes.json", {"runs": [{"val_bpb": 1.06}]})
    with pytest.raises(UserError, match=r"notes.json has a score under runs\.0\.val_bpb"):
        write_proposal(tmp_path, package())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_proposal(tmp_path / "file", package())

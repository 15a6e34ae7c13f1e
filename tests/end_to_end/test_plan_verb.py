"""`pgolf plan`: published studies, prices by machine, and proposals, on the shipped configuration."""

import shutil
from pathlib import Path

import pytest

from pgolf.app.verbs.plan import main
from pgolf.digest import digest
from pgolf.errors import UserError
from pgolf.files import read_json, write_json


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_study_counts_its_runs_and_names_the_published_mismatches(capsys: pytest.CaptureFixture[str]) -> None:
    """With one of the five seeds: composing all 25 takes five times as long."""
    assert main(["--study", "golden_sunflowers", "seed=1597", "--price", "8xH100=20", "--price", "12.5"]) == 0
    shown = capsys.readouterr().out
    assert "5 jobs, 0 finished, 5 to run." in shown and "time: 20.0 h" in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["experiment=pr2059_all", "1", "4.00", "80.00", "50.00"] in lines
    assert ["all", "5", "20.00", "400.00", "250.00"] in lines
    assert "cost: 400.00 at 20.00 an hour (8xH100)" in shown and "cost: 250.00 at 12.50 an hour\n" in shown
    assert "4 x 3 x 4 = 48.0 hours, the table lists 12.0" in shown
    assert "3 x 4 = 12.0 hours, the table lists 8.0" in shown and "2 of its lines" in shown
    assert "not the sum" in shown


def test_a_proposal_of_a_smaller_study_is_written_and_refused_beside_scores(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["seed=1,2", "experiment=pr2059_baseline,pr2059_ut", "scale=mini", "data=pydocs", "--proposal", "new"]
    assert main(["--study", "golden_sunflowers", "--seconds", "60", *words]) == 0
    content = read_json(here / "new" / "proposal.json")
    assert content["seeds"] == [1, 2] and content["runs"] == 4 and len(content["configurations"]) == 2
    assert content["hours"] == pytest.approx(4 / 60)
    assert content["command"].startswith("pgolf --multirun seed=1,2 experiment=pr2059_baseline,pr2059_ut scale=mini")
    assert all(one["config"]["model"]["dim"] == 96 for one in content["configurations"])
    assert len(content["mismatches"]) == 2
    (here / "new" / "submission.json").write_text("{}")
    with pytest.raises(UserError, match=r"submission.json .* a proposal has no score"):
        main(["--study", "golden_sunflowers", *words])


def test_a_proposal_comes_before_its_runs(here: Path) -> None:
    from pgolf.app.compose import composer

    with composer() as made:
        job = made.jobs(["seed=1", "scale=mini"], True)[0]
    job.directory.mkdir(parents=True)
    write_json(job.directory / "status.json", {"state": "done", "digest": digest(job.config)})
    with pytest.raises(UserError, match="1 of these runs are finished"):
        main(["seed=1,2", "scale=mini", "--proposal", "new"])
    assert not (here / "new").exists()
    shutil.rmtree(job.directory)
    assert main(["seed=1,2", "scale=mini", "--proposal", "new"]) == 0
    assert "Not known for all runs" in (here / "new" / "proposal.md").read_text("utf-8")


@pytest.mark.parametrize("price", ["cheap", "8xH100=", "8xH100=-1", "nan"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(UserError, match="give the price of one hour"):
        main(["seed=1,2", "--price", price])

"""A sweep over seeds: one directory each, nothing twice, one failure stops no other."""

from pathlib import Path

from pgolf.files import read_json, write_bytes

from .conftest import Ground, pgolf, succeed


def test_a_sweep_survives_a_failing_seed_and_is_completed_by_issuing_it_again(
    ground: Ground, finished: Path, tmp_path: Path
) -> None:
    sweep = ["--multirun", "seed=42,0,1234", *ground.job(tmp_path / "unused")]
    group = read_json(finished / "run.json")["group_digest"][:8]
    folders = {seed: tmp_path / "multirun" / f"default-{group}-seed{seed}" for seed in (42, 0, 1234)}
    damaged = folders[0] / "checkpoint" / "state.pgolf"
    write_bytes(damaged, b"PGOLFCP1 and then something else")
    first = pgolf(*sweep, cwd=tmp_path)
    assert first.returncode == 1 and "Traceback" not in first.stdout + first.stderr
    assert f"pgolf: checkpoint {damaged} is damaged" in first.stdout
    assert "delete it to train this run again from step 0" in first.stdout
    assert [read_json(folder / "status.json")["state"] for folder in folders.values()] == ["done", "failed", "done"]
    assert read_json(folders[42] / "summary.json")["val_bpb"] == read_json(finished / "summary.json")["val_bpb"]
    assert damaged.is_file()
    damaged.unlink()
    assert "3 jobs, 2 of them finished before." in succeed(*sweep, cwd=tmp_path)
    scores = [read_json(folder / "summary.json")["val_bpb"] for folder in folders.values()]
    assert len(set(scores)) == 3
    assert "3 jobs, 3 of them finished before." in succeed(*sweep, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "multirun").glob("*-seed*")} == {one.name for one in folders.values()}

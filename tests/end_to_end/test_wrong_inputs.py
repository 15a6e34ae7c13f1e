"""What people get wrong: one sentence that says what to do, the right exit status, nothing lost."""

import shutil
from pathlib import Path

import pytest

from pgolf.files import read_json, write_bytes

from .conftest import Ground, fill, mount, only, pgolf, refused, succeed


def test_a_typo_in_an_experiment_file_and_behind_a_plus(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nmodel:\n  qk_gian: 3.0\n")
    job = ground.job(tmp_path / "runs", "experiment=mine", "+train.clip.nrom=1.0")
    result = pgolf("--config-dir", str(tmp_path), *job)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "2 problems in the configuration; nothing was started." in result.stderr
    for words in (("model.qk_gian", "mine.yaml", "qk_gain"), ("train.clip.nrom", "command line", "norm")):
        (line,) = (line for line in result.stderr.splitlines() if words[0] in line)
        assert all(word in line for word in words), line
    assert not (tmp_path / "runs").exists()


def test_an_impossible_combination(ground: Ground, tmp_path: Path) -> None:
    result = pgolf(*ground.job(tmp_path / "runs", "model.dim=100", "model.attention.num_heads=8"))
    refused(result, 2, "dim=100 is not divisible by attention.num_heads=8")
    assert not (tmp_path / "runs").exists()


def test_an_output_directory_that_cannot_be_written(ground: Ground, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    result = pgolf(*ground.job(tmp_path / "plain" / "runs"))
    refused(result, 1, f"cannot make run directories in {tmp_path / 'plain' / 'runs'}", "Set paths.runs")
    assert (tmp_path / "plain").read_text() == "a file"


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_after_more_space(
    ground: Ground, finished: Path, small_disk: Path
) -> None:
    job = ground.job(small_disk / "runs")
    refused(pgolf(*job), 1, "state.pgolf: No space left on device. Free some space")
    directory = only(small_disk / "runs")
    assert read_json(directory / "status.json")["state"] == "failed"
    fill(small_disk)
    refused(pgolf(*job), 1, "No space left on device")  # now there is no room for the sentence either
    assert mount("-o", "remount,size=8m", str(small_disk)) == 0
    succeed(*job)
    assert read_json(directory / "summary.json")["val_bpb"] == read_json(finished / "summary.json")["val_bpb"]
    assert mount("-o", "remount,ro", str(small_disk)) == 0
    refused(pgolf("eval", f"run={directory}", "ttt=none"), 1, "cannot write in", "Read-only file system")


@pytest.mark.usefixtures("finished")  # the data is prepared
def test_a_truncated_shard_and_a_missing_tokenizer(ground: Ground, tmp_path: Path) -> None:
    own = Ground(ground.texts, tmp_path / "data")
    shutil.copytree(ground.data, own.data)
    job = own.job(tmp_path / "runs")
    succeed(*job, "train.max_steps=1")
    begun = read_json(only(tmp_path / "runs") / "run.json")
    prepared = Path(begun["stages"]["prepare"]["result"]["data_directory"])
    shard = sorted(prepared.glob("*train*.bin"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    refused(pgolf(*job), 1, shard.name)
    shard.write_bytes(whole)
    (prepared / "tokenizer.model").unlink()
    refused(pgolf(*job), 1, "tokenizer.model")
    assert shard.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "overrides"), [("artifact.pgolf", ["ttt=none"]), ("model.safetensors", ["quant.matrix.bits=5"])]
)
def test_eval_of_a_damaged_run(finished: Path, tmp_path: Path, name: str, overrides: list[str]) -> None:
    damaged = tmp_path / "run-seed42"
    for path in (*finished.glob("*"), *finished.glob(".hydra/*")):
        if path.is_file():
            write_bytes(damaged / path.relative_to(finished), path.read_bytes())
    data = bytearray((damaged / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = bytes(255 - byte for byte in data[middle : middle + 8])
    (damaged / name).write_bytes(data)
    refused(pgolf("eval", f"run={damaged}", *overrides), 1, name)
    assert (damaged / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()

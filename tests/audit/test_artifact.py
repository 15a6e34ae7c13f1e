"""The validation text stays closed while an artifact is made, and changes nothing about it."""

from pathlib import Path

import numpy as np
import pytest

from pgolf.audit.artifact import artifact_check, validation_files, with_other_validation
from pgolf.audit.probe import Audit
from pgolf.audit.seal import SealBroken, sealed
from pgolf.audit.specimens.bad_strategies import ReadsTheFiles
from pgolf.audit.specimens.ground import TEXT_VOCABULARY, small_dataset, tiny_model
from pgolf.console import Silent
from pgolf.kernels.attend import sdpa
from pgolf.ttt.fixed import Chunked
from pgolf.ttt.strategy import Bench


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return small_dataset(tmp_path_factory.mktemp("data"))


def constant(dataset, directory: Path) -> Path:
    directory.mkdir()
    path = directory / "artifact"
    path.write_bytes(dataset.train_files[0].read_bytes()[:100])
    return path


def test_an_artifact_of_the_training_text_passes(dataset, tmp_path):
    check = artifact_check(constant, dataset, tmp_path)
    assert check.verdict == "pass" and check.probed == 2


def test_what_depends_on_the_validation_text_without_opening_it_fails(dataset, tmp_path):
    def sized(data, directory):
        path = constant(data, directory)
        path.write_bytes(str(data.manifest["splits"]["val"]["tokens"]).encode())
        return path

    check = artifact_check(sized, dataset, tmp_path)
    assert check.verdict == "fail" and "beside other validation text" in check.detail


def test_what_differs_every_time_is_not_probed(dataset, tmp_path):
    def named(data, directory):
        path = constant(data, directory)
        path.write_bytes(str(directory).encode())
        return path

    assert artifact_check(named, dataset, tmp_path).verdict == "not probed"


def test_the_other_text_is_the_second_half_and_a_sound_data_set(dataset, tmp_path):
    other = with_other_validation(dataset, tmp_path / "other")
    whole, half = dataset.validation(), other.validation()
    assert half.names == whole.names[len(whole.names) // 2 :]
    assert np.array_equal(half.tokens, whole.tokens[-len(half.tokens) :]) and 0 < len(half.tokens) < len(whole.tokens)
    assert half.document_bytes.sum() == half.token_bytes.sum()
    assert [path.read_bytes() for path in other.train_files] == [path.read_bytes() for path in dataset.train_files]


@pytest.mark.parametrize("read", [Path.read_bytes, np.fromfile, lambda path: np.memmap(path, np.uint16, "r")])
def test_sealed_files_cannot_be_opened(dataset, read):
    files = validation_files(dataset)
    with sealed(files, "training"), pytest.raises(SealBroken, match="training opened .*val_000000.bin"):
        read(files[0])
    with sealed(files, "training"):
        read(dataset.train_files[0])
        with sealed([dataset.train_files[0]], "more"), pytest.raises(SealBroken, match="more opened"):
            read(dataset.train_files[0])
        with pytest.raises(SealBroken):
            dataset.validation()
    assert len(read(files[0])) > 0


def test_a_strategy_that_opens_validation_files_fails_by_name_and_any_other_does_not(dataset):
    """No change of the sample would show what comes from the file."""
    audit, bench = Audit(documents=3, max_tokens=24, flips=1), Bench(0, sdpa, Silent())

    def checks_of(strategy):
        found = audit.run(tiny_model(TEXT_VOCABULARY), strategy, dataset.validation(), bench, dataset=dataset)
        return {check.id: check for check in found}

    caught = checks_of(ReadsTheFiles(dataset.files("val")))
    assert [name for name, check in caught.items() if check.verdict == "fail"] == ["C2b"]
    assert "ReadsTheFiles opened" in caught["C2b"].detail and "from the scorer" in caught["C2b"].detail
    assert caught["C1a"].verdict == "not probed"
    legal = checks_of(Chunked(sequence_tokens=8, rows=2))
    assert "fail" not in {check.verdict for check in legal.values()}
    assert len(dataset.files("val")[0].read_bytes()) > 0  # open again

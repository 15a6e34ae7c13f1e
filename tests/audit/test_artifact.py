"""The validation text stays closed while an artifact is made, and changes nothing about it."""

from pathlib import Path

import numpy as np
import pytest

from pgolf.audit.artifact import artifact_check, validation_files, with_other_validation
from pgolf.audit.seal import SealBroken, sealed
from pgolf.audit.specimens.ground import small_dataset


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

"""Opening prepared data refuses what a look at part of it shows; each fault keeps sizes, headers and hashes right."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf.console import Silent
from pgolf.data.dataset import Dataset, table_bytes
from pgolf.data.encoding.bytes import ByteTable
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.manifest import MANIFEST, write_manifest
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.verification import samples
from pgolf.errors import UserError

from ..corpus import small_config, write_corpus


def sign_again(directory: Path, **changes) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    write_manifest(directory, {k: v for k, v in manifest.items() if k not in ("format", "files", "digest")} | changes)


def rewrite(path: Path, change) -> None:
    values = np.array(read_shard(path))
    path.unlink()
    write_shard(path, change(values))


def missing_bos(values):
    values[np.flatnonzero(values == 1)[-1]] = 300
    return values


def beyond(values):
    values[np.flatnonzero(values > 3)[9]] = 401
    return values


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda values: np.roll(values, 1), "documents do not begin where the index says"),
        (missing_bos, "documents do not begin where the index says"),
        (lambda values: np.where(np.arange(len(values)) // 200 == 1, 0, values), "or not written wholly"),
        (beyond, "holds the id 401, the vocabulary ends at 400"),
    ],
)
def test_a_damaged_training_shard_is_refused_at_once(copy, change, says):
    rewrite(copy / "train_000002.bin", change)
    sign_again(copy)
    with pytest.raises(UserError, match=says) as refused:
        Dataset(copy)
    assert "train_000002.bin" in str(refused.value)


def test_training_shards_in_each_others_place_are_refused(copy):
    first, second = copy / "train_000000.bin", copy / "train_000001.bin"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(UserError, match=r"train_000000.bin.*shard of other data, in the wrong place"):
        Dataset(copy)


def test_a_training_shard_of_another_preparation_is_refused(copy, tmp_path):
    other = small_config(write_corpus(tmp_path / "corpus.jsonl"), val_fraction=0.3).prepare(tmp_path, Silent())
    shutil.copyfile(other.directory / "train_000001.bin", copy / "train_000001.bin")
    with pytest.raises(UserError, match=r"train_000001.bin.*shard of other data"):
        Dataset(copy)


def test_windows_are_the_beginning_the_middle_and_the_end(monkeypatch):
    monkeypatch.setattr(samples, "WINDOW_TOKENS", 4)
    values = np.arange(20, dtype=np.uint16)
    assert [(first, part.tolist()) for first, part in samples.windows(values)] == [
        (0, [0, 1, 2, 3]),
        (8, [8, 9, 10, 11]),
        (16, [16, 17, 18, 19]),
    ]
    assert [part.tolist() for _, part in samples.windows(values[:3])] == [[0, 1, 2]]


@pytest.mark.parametrize("window", [1, 50, 10**6])
def test_whole_data_pass_with_any_window(prepared, window, monkeypatch):
    monkeypatch.setattr(samples, "WINDOW_TOKENS", window)
    Dataset(prepared.directory).validation()


@pytest.mark.parametrize("name", ["val_000000.bin", "val_bytes_000001.bin"])
def test_a_changed_validation_file_is_refused_by_its_hash(copy, name):
    rewrite(copy / name, lambda values: np.append(values[:-2], [values[-2] + 1, values[-1] - 1]))
    with pytest.raises(UserError, match=rf"{name} does not have the SHA-256 of its manifest: validation would be"):
        Dataset(copy).validation()


def within_a_document(counts):
    counts[1:9] = counts[8:0:-1] if len(set(counts[1:9])) > 1 else counts[1:9]
    return counts


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda counts: np.roll(counts, 1), r"are charged \d+ bytes \(\d+ of them its BOS\), its text has"),
        (lambda counts: np.where(counts > 3, counts + 1, counts), "bits per byte would be wrong"),
        (within_a_document, "do not stand for the bytes beside them"),
    ],
)
def test_byte_counts_of_other_tokens_are_refused(copy, change, says):
    """The sum over all tokens is right in the first and the last."""
    rewrite(copy / "val_bytes_000000.bin", change)
    sign_again(copy)
    with pytest.raises(UserError, match=says):
        Dataset(copy).validation()


def test_a_manifest_without_its_transform_is_refused(tmp_path):
    config = small_config(write_corpus(tmp_path / "corpus.jsonl"), transform=CaseOps())
    directory = config.prepare(tmp_path / "root", Silent()).directory
    manifest = json.loads((directory / MANIFEST).read_text())
    sign_again(
        directory,
        front_end=manifest["front_end"] | {"transform": None},
        recipe=manifest["recipe"] | {"transform": None},
    )
    with pytest.raises(UserError, match="byte counts, tokenizer and transform do not belong together"):
        Dataset(directory).validation()


def test_a_table_is_refused_for_transformed_text(tokenizer):
    ids = np.array([1, *tokenizer.encode("a b")], np.uint16)
    plain = table_bytes(FrontEnd(None, tokenizer), ids)
    assert plain.tolist() == ByteTable.of(tokenizer).stream_bytes(ids).tolist()
    with pytest.raises(UserError, match="would charge the operators"):
        table_bytes(FrontEnd(CaseOps(), tokenizer), ids)


def test_a_validation_id_beyond_the_vocabulary_is_refused(copy):
    rewrite(copy / "val_000000.bin", beyond)
    sign_again(copy)
    with pytest.raises(UserError, match="the validation shards of .* hold the id 401, the vocabulary ends at 400"):
        Dataset(copy).validation()

"""Every damage is found by the check that is there for it."""

import json
from pathlib import Path

import numpy as np
import pytest

from pgolf.data.dataset import Dataset
from pgolf.data.manifest import MANIFEST, canonical_digest, write_manifest
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.stats import stats
from pgolf.data.verify import verify
from pgolf.errors import UserError

NAMES = [
    "manifest",
    "files",
    "shard headers",
    "shards written",
    "document list",
    "tokenizer",
    "disjoint splits",
    "train documents",
    "val documents",
    "byte sidecar",
]


def failures(directory: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(directory) if not check.passed}


def sign_again(directory: Path, **changes) -> None:
    """Make the manifest agree with the damaged files, so that only the content can tell."""
    manifest = json.loads((directory / MANIFEST).read_text())
    content = {k: v for k, v in manifest.items() if k not in ("format", "files", "digest")}
    write_manifest(directory, content | changes)


def rewrite(path: Path, change) -> None:
    values = np.array(read_shard(path))
    path.unlink()
    write_shard(path, change(values))


def edit_lines(directory: Path, change) -> None:
    path = directory / "documents.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [json.dumps(entry) + "\n" for entry in change(entries)]
    path.write_text("".join(lines))


def test_a_whole_directory_passes_every_check(prepared):
    checks = verify(prepared.directory)
    assert [check.name for check in checks] == NAMES
    assert all(check.passed for check in checks)


def test_an_edited_manifest_is_found_alone(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["splits"]["val"]["bytes"] += 1
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert list(failures(copy)) == ["manifest"]
    with pytest.raises(UserError, match="does not match its own digest"):
        Dataset(copy)


def test_one_flipped_token_is_found_by_hash_and_by_text(copy):
    def flip(values):
        values[10] = 300 if values[10] != 300 else 301
        return values

    rewrite(copy / "train_000000.bin", flip)
    assert set(failures(copy)) == {"files", "train documents"}
    sign_again(copy)
    assert set(failures(copy)) == {"train documents"}


def test_a_truncated_shard_is_found(copy):
    path = copy / "val_000000.bin"
    path.write_bytes(path.read_bytes()[:-20])
    found = failures(copy)
    assert "is truncated" in found["val documents"] and "files" in found
    with pytest.raises(UserError, match="its manifest says"):
        Dataset(copy)


def test_a_hole_in_a_shard_is_found(copy):
    rewrite(copy / "train_000000.bin", lambda v: np.r_[v[:2], np.zeros(1100), 5].astype(int))
    assert "run of more than 1024 zeros" in failures(copy)["shards written"]


def test_a_missing_bos_is_found(copy):
    def drop(values):
        values[np.flatnonzero(values == 1)[1]] = 300
        return values

    rewrite(copy / "val_000000.bin", drop)
    sign_again(copy)
    assert "BOS tokens" in failures(copy)["val documents"]
    with pytest.raises(UserError, match="is inconsistent"):
        Dataset(copy).validation()


def test_a_wrong_byte_count_is_found(copy):
    def add(values):
        values[5] += 1
        return values

    rewrite(copy / "val_bytes_000000.bin", add)
    sign_again(copy)
    assert failures(copy) == {"byte sidecar": failures(copy)["byte sidecar"]}
    assert "validation token 5 stands for" in failures(copy)["byte sidecar"]


def test_a_wrong_recorded_length_is_found(copy):
    def lengthen(entries):
        entries[0]["bytes"] += 1
        return entries

    edit_lines(copy, lengthen)
    sign_again(copy)
    assert "the original has" in failures(copy)["train documents"]


def test_a_document_in_both_splits_is_found(copy):
    def repeat(entries):
        entries[-1]["sha256"] = entries[0]["sha256"]
        return entries

    edit_lines(copy, repeat)
    sign_again(copy)
    assert "is also the training document" in failures(copy)["disjoint splits"]


def test_a_document_on_the_wrong_side_is_found(copy):
    sign_again(copy, val_fraction=0.0001)
    assert "against the split rule" in failures(copy)["disjoint splits"]


def test_another_tokenizer_is_found(copy, tokenizer):
    (copy / "tokenizer.model").write_bytes(tokenizer.model)
    sign_again(copy)
    assert "is not the tokenizer of the manifest" in failures(copy)["tokenizer"]
    (copy / "tokenizer.model").write_bytes(b"damaged")
    assert "is not a SentencePiece model" in failures(copy)["tokenizer"]


def test_a_damaged_line_and_a_foreign_file_are_found(copy):
    (copy / "extra.txt").write_text("x")
    assert "does not list: ['extra.txt']" in failures(copy)["files"]
    with open(copy / "documents.jsonl", "a") as file:
        file.write("{not json}\n")
    assert "is damaged" in failures(copy)["document list"]


def test_nothing_there_is_one_failed_check(tmp_path):
    assert list(failures(tmp_path)) == ["manifest"]


def test_stats_agree_with_the_manifest(prepared):
    figures = stats(prepared.directory)
    assert json.loads(json.dumps(figures)) == figures
    for name, split in figures["splits"].items():
        totals = prepared.manifest["splits"][name]
        assert all(split[key] == totals[key] for key in ("documents", "tokens", "bytes"))
        assert sum(count for _, count in split["length_histogram"]) == split["documents"]
        without_bos = split["tokens"] - split["documents"]
        assert split["bytes_per_token"] == pytest.approx(split["bytes"] / without_bos)
    token, text, count = figures["splits"]["train"]["most_frequent"][0]
    everything = np.concatenate([read_shard(path) for path in prepared.train_files])
    assert count == int((everything == token).sum()) == np.bincount(everything)[2:].max()
    assert prepared.decode([token]) == text


def test_the_digest_covers_every_figure(prepared):
    manifest = dict(prepared.manifest)
    assert manifest.pop("digest") == canonical_digest(manifest) == prepared.digest

"""Fetching a published variant: resumed, shared, refused; each file only after its checks."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.console import Silent
from pgolf.data.published import download
from pgolf.data.published.download import PUBLISHED_MANIFEST, Fetched, Source, fetch
from pgolf.data.published.hub import Hub, HubError
from pgolf.data.published.layout import read_layout
from pgolf.data.shards import read_shard
from pgolf.errors import UserError

from ..fake_hub import FakeHub
from ..publication import CASEOPS, REPOSITORY, Publication, publish, shard

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
SOURCE = Source(REPOSITORY, None, "datasets", CASEOPS)
FOLDER = f"datasets/datasets/fineweb10B_{CASEOPS}"


@pytest.fixture(scope="module")
def publication() -> Publication:
    return publish(caseops=True)


@pytest.fixture
def fake(publication: Publication, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits between its own attempts
    monkeypatch.setattr(download, "SPARE_BYTES", 0)
    with FakeHub(REPOSITORY) as hub:
        hub.publish(publication.files)
        yield hub


class Heard(Silent):
    """A console that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def bring(
    fake: FakeHub,
    working: Path,
    train_shards: int = 3,
    siblings: dict[Path, dict[str, Any]] | None = None,
    accept: Callable[..., None] = lambda *_: None,
    accept_validation: Callable[..., None] = lambda *_: None,
    console: Silent | None = None,
) -> Fetched:
    def connect() -> Hub:
        return Hub(REPOSITORY, fake.endpoint)

    known = siblings or {}
    return fetch(SOURCE, train_shards, 400, working, known, accept, accept_validation, 3, connect, console or Silent())


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.bin")}


def expected(train_shards: int, publication: Publication) -> set[str]:
    val = len([path for path in publication.files if "_val_0" in path])
    names = {f"fineweb_train_{index:06d}.bin" for index in range(train_shards)}
    return names | {f"fineweb_{kind}_{index:06d}.bin" for kind in ("val", "val_bytes") for index in range(val)}


def edited(publication: Publication, change: Callable[[dict[str, Any]], Any]) -> dict[str, bytes]:
    manifest = json.loads(publication.files["datasets/manifest.json"])
    changed = change(manifest)
    content = manifest if changed is None else changed
    return publication.files | {"datasets/manifest.json": json.dumps(content).encode()}


def test_everything_arrives_with_its_origin(fake, publication, tmp_path):
    fetched = bring(fake, tmp_path / "w")
    assert shards(tmp_path / "w") == expected(3, publication)
    for name in shards(tmp_path / "w"):
        assert (tmp_path / "w" / name).read_bytes() == publication.files[f"{FOLDER}/{name}"]
    assert (tmp_path / "w" / "tokenizer.model").read_bytes() == publication.front_end.tokenizer.model
    origin = fetched.origin
    assert origin["commit"] == fake.newest and origin["train_shards_published"] == publication.train_shards
    assert origin["files"]["fineweb_val_000000.bin"]["path"] == f"{FOLDER}/fineweb_val_000000.bin"
    json.dumps(origin)


def test_an_interrupted_download_fetches_the_rest_alone_at_the_same_commit(fake, publication, tmp_path):
    broken = f"{FOLDER}/fineweb_train_000001.bin"
    fake.faults[broken] = ["corrupt", "zeros"]
    with pytest.raises(HubError, match=r"came damaged twice.* of \d+ files .* are kept; the same command continues"):
        bring(fake, tmp_path / "w")
    begun, kept = fake.newest, shards(tmp_path / "w")
    assert "fineweb_train_000001.bin" not in kept
    fake.publish(publication.files | {broken: shard(np.ones(50))})
    before = len(fake.transfers())
    heard = Heard()
    assert bring(fake, tmp_path / "w", console=heard).commit == begun
    assert len(fake.transfers()) - before == len(expected(3, publication) - kept)
    assert any(line.startswith(f"Continuing at commit {begun[:12]}") for line in heard.lines)


def test_more_shards_later_share_what_is_there(fake, publication, tmp_path):
    first = bring(fake, tmp_path / "a", 2)
    fake.publish(dict.fromkeys(publication.files, b"changed"))
    siblings = {tmp_path / "a": first.origin}
    before = len(fake.transfers())
    second = bring(fake, tmp_path / "b", 4, siblings)
    assert second.commit == first.commit != fake.newest
    assert shards(tmp_path / "b") == expected(4, publication)
    assert len(fake.transfers()) - before == 2
    name = "fineweb_train_000000.bin"
    assert (tmp_path / "a" / name).stat().st_ino == (tmp_path / "b" / name).stat().st_ino


def test_fewer_shards_need_no_network(fake, publication, tmp_path):
    first = bring(fake, tmp_path / "a", 4)
    fake.down, before = True, len(fake.log)
    second = bring(fake, tmp_path / "b", 2, {tmp_path / "a": first.origin})
    assert shards(tmp_path / "b") == expected(2, publication) and set(second.files) <= set(first.files)
    assert len(fake.log) == before


def test_a_file_system_without_links_copies_and_says_so(fake, publication, tmp_path, monkeypatch):
    first = bring(fake, tmp_path / "a", 2)

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(download.os, "link", refuse)
    heard = Heard()
    bring(fake, tmp_path / "b", 1, {tmp_path / "a": first.origin}, console=heard)
    assert shards(tmp_path / "b") == expected(1, publication)
    assert any("it is copied" in line for line in heard.lines)


def test_more_shards_than_published_are_refused_with_their_number(fake, publication, tmp_path):
    with pytest.raises(UserError, match=rf"train_shards=99, but {REPOSITORY} has {publication.train_shards} training"):
        bring(fake, tmp_path / "w", 99)
    assert shards(tmp_path / "w") == set()


def test_a_promised_shard_that_is_not_there_is_named_before_any_is_fetched(fake, publication, tmp_path):
    files = dict(publication.files)
    del files[f"{FOLDER}/fineweb_train_000002.bin"]
    fake.publish(files)
    with pytest.raises(HubError, match=r"lacks 1 of the shards .* the first is fineweb_train_000002\.bin"):
        bring(fake, tmp_path / "w")
    assert shards(tmp_path / "w") == set()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fineweb_train_000001.bin", shard(np.zeros(700)), "holds nothing but zeros|ends in zeros"),
        (
            "fineweb_train_000001.bin",
            shard(np.r_[np.ones(9), np.zeros(1500), np.ones(2000)]),
            "512 zeros from token 512",
        ),
        ("fineweb_train_000000.bin", shard(np.full(700, 5)), "does not begin with a document .id 1., but with id 5"),
        ("fineweb_train_000001.bin", shard(np.r_[1, np.full(700, 400)]), "the id 400, but the vocabulary ends at 400"),
        ("fineweb_train_000001.bin", shard(np.ones(700))[:-2], "is truncated"),
        ("fineweb_train_000001.bin", b"\x07" * 2000, "not a token shard"),
        ("fineweb_val_000000.bin", shard(np.full(700, 5)), "does not begin with a document"),
        ("fineweb_val_bytes_000000.bin", shard(np.zeros(700)), "holds nothing but zeros|ends in zeros"),
    ],
)
def test_a_published_file_that_is_itself_damaged_is_refused(fake, publication, tmp_path, name, content, message):
    fake.publish(publication.files | {f"{FOLDER}/{name}": content})
    with pytest.raises(HubError, match=message):
        bring(fake, tmp_path / "w")
    assert name not in shards(tmp_path / "w")


def test_byte_counts_of_another_length_are_refused(fake, publication, tmp_path):
    fake.publish(publication.files | {f"{FOLDER}/fineweb_val_bytes_000000.bin": shard(np.ones(5))})
    with pytest.raises(UserError, match=r"fineweb_val_bytes_000000\.bin has 5 byte counts for the 300 tokens"):
        bring(fake, tmp_path / "w")


def test_the_tokenizer_is_judged_before_any_shard_is_fetched(fake, tmp_path):
    def refuse(working: Path, layout: object, has_sidecar: bool) -> None:
        assert (working / "tokenizer.model").is_file() and has_sidecar
        raise UserError("another tokenizer.")

    with pytest.raises(UserError, match="another tokenizer"):
        bring(fake, tmp_path / "w", accept=refuse)
    assert not any(path.endswith(".bin") for path in fake.transfers())


def test_the_validation_split_is_judged_before_any_training_shard_is_fetched(fake, publication, tmp_path):
    def refuse(working: Path, has_sidecar: bool) -> None:
        assert shards(working) == expected(0, publication) and has_sidecar
        raise UserError("another split.")

    with pytest.raises(UserError, match="another split"):
        bring(fake, tmp_path / "w", accept_validation=refuse)
    assert not any("_train_" in path for path in fake.transfers())


def test_a_full_disk_is_said_before_the_download(fake, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 10_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB are still to be fetched, but only 0\.0 GB are free .*data.train_shards"):
        bring(fake, tmp_path / "w")
    assert shards(tmp_path / "w") == set()


def test_a_folder_that_cannot_be_written_is_named(fake, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write in .*paths.data"):
        bring(fake, tmp_path / "file" / "w")


MANIFESTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: [], "has no list of datasets"),
    (lambda m: m.pop("datasets") and None, "has no list of datasets"),
    (lambda m: m["datasets"].pop() and None, rf"no data set 'fineweb10B_{CASEOPS}'.*data\.variant.*fineweb10B_other"),
    (lambda m: m["datasets"][1].pop("stats") and None, "has no stats"),
    (lambda m: m["datasets"][1]["stats"].pop("files_train") and None, "files_train .* is None"),
    (lambda m: m["datasets"][1]["stats"].update(files_val="one"), "files_val .* is 'one'"),
    (lambda m: m["datasets"][1].pop("tokenizer_name") and None, "has no tokenizer_name"),
    (lambda m: m["tokenizers"].pop() and None, "no tokenizer 'sp_bpe_400'"),
    (lambda m: m["tokenizers"][0].pop("model_path") and None, "has no model_path"),
    (lambda m: m["tokenizers"][0].update(model_path="../../etc/passwd"), "no model_path inside the repository"),
    (lambda m: m["datasets"][1].update(bos_id=0), "begins documents with id 0"),
]


@pytest.mark.parametrize(("change", "message"), MANIFESTS)
def test_a_wrong_manifest_says_what_is_missing(fake, publication, tmp_path, change, message):
    fake.publish(edited(publication, change))
    with pytest.raises(UserError, match=message):
        bring(fake, tmp_path / "w")


def test_a_manifest_that_is_no_json_is_refused(fake, publication, tmp_path):
    fake.publish(publication.files | {"datasets/manifest.json": b"<html>"})
    with pytest.raises(UserError, match="not valid JSON"):
        bring(fake, tmp_path / "w")


def test_a_manifest_at_another_root_is_asked_for_by_its_key(fake, publication, tmp_path):
    fake.publish({path.removeprefix("datasets/"): data for path, data in publication.files.items()})
    with pytest.raises(HubError, match=r"does not have what was asked for \(listing datasets\); check data\.root"):
        bring(fake, tmp_path / "w")


def test_a_byte_variant_has_no_tokenizer_file(publication):
    manifest = json.loads(publication.files["datasets/manifest.json"])
    manifest["tokenizers"][0] = {"name": "sp_bpe_400", "kind": "pure_byte", "path": "tokenizers/bytes.json"}
    layout = read_layout(manifest, "", CASEOPS, "the manifest")
    assert layout.tokenizer is None and layout.folder == f"datasets/fineweb10B_{CASEOPS}"


def test_the_bytes_on_disk_are_readable_shards(fake, publication, tmp_path):
    bring(fake, tmp_path / "w", publication.train_shards)
    val = [read_shard(tmp_path / "w" / name) for name in sorted(shards(tmp_path / "w")) if "_val_0" in name]
    assert sum(map(len, val)) == publication.val_tokens
    assert (tmp_path / "w" / PUBLISHED_MANIFEST).is_file()

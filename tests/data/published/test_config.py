"""Published data from the hub to loaders and validation, and every way in which they are refused."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgolf.console import Silent
from pgolf.data.config import DataConfig
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.manifest import MANIFEST, write_manifest
from pgolf.data.published import download
from pgolf.data.published.config import PublishedData
from pgolf.data.published.hub import Hub, HubError
from pgolf.data.published.layout import val_files
from pgolf.data.shards import iterate_documents, read_shard, write_shard
from pgolf.data.sources.text import TextFiles
from pgolf.data.stats import stats
from pgolf.data.verification.verify import verify
from pgolf.errors import UserError
from tests.support import GOLDEN

from ..fake_hub import FakeHub
from ..publication import CASEOPS, PLAIN, REPOSITORY, VAL_DOCUMENTS, Publication, publish, shard, texts

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
MODEL = GOLDEN.parent / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"
VARIANTS = pytest.mark.parametrize("caseops", [False, True], ids=["plain", "caseops"])


@pytest.fixture(scope="module")
def publications() -> dict[bool, Publication]:
    return {caseops: publish(caseops) for caseops in (False, True)}


@pytest.fixture
def fake(publications: dict[bool, Publication], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the library waits between its own attempts
    monkeypatch.setattr(download, "SPARE_BYTES", 0)
    with FakeHub(REPOSITORY) as hub:
        yield hub


def config(publication: Publication, caseops: bool, **changes: Any) -> PublishedData:
    scored = (publication.val_tokens - 1) // 2048 * 2048
    settings: dict[str, Any] = {
        "name": "tiny",
        "repository": REPOSITORY,
        "variant": CASEOPS if caseops else PLAIN,
        "vocab_size": publication.front_end.vocab_size,
        "transform": CaseOps() if caseops else None,
        "train_shards": 4,
        "val_documents": VAL_DOCUMENTS,
        "scored_tokens": [scored, 12345],
    }
    return PublishedData(**(settings | changes))


def bring(data: PublishedData, fake: FakeHub, root: Path) -> Dataset:
    return data.download(root, Silent(), lambda: Hub(REPOSITORY, fake.endpoint))


def failures(directory: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify(directory) if not check.passed}


@VARIANTS
def test_downloaded_data_pass_every_check_and_can_be_read(fake, publications, tmp_path, caseops):
    publication = publications[caseops]
    fake.publish(publication.files)
    data = config(publication, caseops)
    dataset = bring(data, fake, tmp_path)
    assert dataset.directory == data.directory(tmp_path) and not list(tmp_path.glob(".*partial*"))
    assert failures(dataset.directory) == {}
    assert {"published figures", "byte ratio", "disjoint splits"} <= {check.name for check in verify(dataset.directory)}
    assert dataset.manifest["byte_accounting"] == ("sidecar" if caseops else "lut")
    assert dataset.manifest["origin"]["commit"] == fake.newest
    validation = dataset.validation()
    assert len(validation.document_starts) == VAL_DOCUMENTS
    charged = np.add.reduceat(validation.token_bytes.astype(np.int64), validation.document_starts)
    assert np.array_equal(charged, validation.document_bytes)
    assert data.differences(dataset.manifest) == []
    figures = stats(dataset.directory)["splits"]
    assert figures["val"]["documents"] == VAL_DOCUMENTS and (figures["val"]["operator_share"] > 0) == caseops
    assert figures["train"]["bytes_per_token"] == pytest.approx(figures["val"]["bytes_per_token"], rel=0.2)


def test_caseops_data_are_charged_their_original_bytes(fake, publications, tmp_path):
    publication = publications[True]
    fake.publish(publication.files)
    validation = bring(config(publication, True), fake, tmp_path).validation()
    assert validation.document_bytes.tolist() == [len(text.encode()) for text in publication.val_texts]


@VARIANTS
def test_the_index_is_that_of_the_documents_across_shard_ends(fake, publications, tmp_path, caseops):
    publication = publications[caseops]
    fake.publish(publication.files)
    dataset = bring(config(publication, caseops, train_shards=publication.train_shards), fake, tmp_path)
    index, documents = dataset.index("train"), list(iterate_documents(dataset.train_files, 1))
    assert len(index) == len(documents) == len(texts()) - VAL_DOCUMENTS
    assert index.rows["tokens"].tolist() == [len(ids) for ids in documents]
    # What normalisation takes away: a ligature of three bytes becomes two letters, two spaces become one.
    charged = [len(text.encode()) - 2 * ("\ufb01" in text) for text in texts()[VAL_DOCUMENTS:]]
    assert index.rows["bytes"].tolist() == charged
    assert max(map(len, documents)) > 100 and len(dataset.train_files) == publication.train_shards


@VARIANTS
def test_a_second_download_and_a_run_need_no_network(fake, publications, tmp_path, caseops):
    fake.publish(publications[caseops].files)
    data = config(publications[caseops], caseops)
    digest = bring(data, fake, tmp_path).digest
    fake.down, before = True, len(fake.log)
    assert bring(data, fake, tmp_path).digest == data.prepare(tmp_path, Silent()).digest == digest
    assert len(fake.log) == before


def test_without_a_download_the_command_is_named(fake, publications, tmp_path):
    data = config(publications[False], False)
    with pytest.raises(UserError, match=r"`pgolf data download data=tiny data.train_shards=4 paths.data=.*`"):
        data.prepare(tmp_path, Silent())
    fake.publish(publications[False].files)
    bring(data, fake, tmp_path)
    with pytest.raises(UserError, match=r"data.train_shards=6 .*The files of tiny-4shards-\w+ are not fetched again"):
        config(publications[False], False, train_shards=6).prepare(tmp_path, Silent())


def test_another_number_of_shards_is_another_directory_with_shared_files(fake, publications, tmp_path):
    fake.publish(publications[True].files)
    small = bring(config(publications[True], True), fake, tmp_path)
    large = bring(config(publications[True], True, train_shards=6), fake, tmp_path)
    assert (len(small.train_files), len(large.train_files)) == (4, 6) and small.digest != large.digest
    assert small.train_files[0].stat().st_ino == large.train_files[0].stat().st_ino
    assert Dataset(small.directory).digest == small.digest
    differences = config(publications[True], True).differences(large.manifest)
    assert differences == ["data.train_shards: downloaded was 6, the configuration says 4"]
    fake.down = True
    assert len(bring(config(publications[True], True, train_shards=2), fake, tmp_path).train_files) == 2


def test_a_shared_file_that_was_damaged_on_disk_is_refused(fake, publications, tmp_path):
    fake.publish(publications[True].files)
    large = bring(config(publications[True], True), fake, tmp_path)
    with open(large.train_files[0], "r+b") as file:
        file.seek(1024 + 100)
        file.write(b"\x40\x01")
    small = config(publications[True], True, train_shards=1)
    with pytest.raises(UserError, match=r"fineweb_train_000000\.bin does not have the hash .* damaged on this disk"):
        bring(small, fake, tmp_path)
    assert "file hashes" in failures(large.directory) and not small.directory(tmp_path).exists()
    shutil.rmtree(large.directory)
    assert failures(bring(small, fake, tmp_path).directory) == {}


def test_a_killed_download_continues_and_ends_the_same(fake, publications, tmp_path):
    fake.publish(publications[True].files)
    data = config(publications[True], True)
    whole = bring(data, fake, tmp_path / "whole")
    folder = f"datasets/datasets/fineweb10B_{CASEOPS}"
    fake.faults[f"{folder}/fineweb_train_000002.bin"] = ["corrupt", "corrupt"]
    with pytest.raises(HubError, match="the same command continues"):
        bring(data, fake, tmp_path / "twice")
    assert not data.directory(tmp_path / "twice").exists()
    again = bring(data, fake, tmp_path / "twice")
    assert again.digest == whole.digest


@pytest.mark.parametrize(
    ("caseops", "changes", "message"),
    [
        (False, {"transform": CaseOps()}, "transform is set, but the shards of sp400 hold plain text .*no piece"),
        (True, {"transform": None}, "hold transformed text .*a piece for each operator.*data/transform=caseops"),
        (True, {"tokenizer_sha256": "0" * 64}, "data.tokenizer_sha256=0000"),
        (True, {"vocab_size": 500}, "has 400 ids, but data.vocab_size=500"),
        (True, {"val_documents": 50_000}, "7 val documents, 50,000 are published: it is another split.*data.val_doc"),
        (True, {"scored_tokens": [45_508_608, 45_514_752]}, "0 scored tokens, 45,508,608 or 45,514,752 are published"),
        (True, {"variant": "sp9"}, "no data set 'fineweb10B_sp9'"),
        (True, {"revision": "v7"}, "no such revision .*v7"),
        (True, {"root": "elsewhere"}, "check data.root"),
        (True, {"train_shards": 99}, "train_shards=99, but someone/golf-data has"),
    ],
)
def test_what_contradicts_the_configuration_is_refused_before_training_shards(
    fake, publications, tmp_path, caseops, changes, message
):
    fake.publish(publications[caseops].files)
    with pytest.raises(UserError, match=message):
        bring(config(publications[caseops], caseops, **changes), fake, tmp_path)
    assert not any("_train_" in path for path in fake.transfers())
    assert not list(tmp_path.glob("tiny-*"))


def test_other_data_are_refused_by_a_configuration(fake, publications, tmp_path):
    fake.publish(publications[True].files)
    dataset = bring(config(publications[True], True), fake, tmp_path)
    plain = config(publications[True], True, transform=None, tokenizer_sha256="0" * 64)
    found = plain.differences(dataset.manifest)
    assert len(found) == 2 and "data.transform" in found[0] and "data.tokenizer_sha256" in found[1]
    with pytest.raises(UserError, match="charged other bytes"):
        dataset.refuse(found)
    own = DataConfig(
        name="own", source=TextFiles(paths=["x"]), tokenizer=SentencePieceTokenizer(vocab_size=400), val_fraction=0.1
    )
    assert own.differences(dataset.manifest) == ["the data were downloaded, the configuration prepares its own"]
    assert plain.differences({"recipe": {}})[0].startswith("the data were prepared from documents, data=tiny asks")
    with pytest.raises(UserError, match="data=tiny is published with its tokenizer"):
        plain.train_tokenizer(tmp_path / "x.model", Silent())


@pytest.mark.parametrize(
    "wrong", [{"train_shards": 0}, {"connections": 0}, {"repository": "no-owner"}, {"name": "a/b"}, {"name": ""}]
)
def test_wrong_settings_are_refused_at_once(publications, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(publications[False], False, **wrong)


def resign(directory: Path, **changes: Any) -> None:
    """Make the manifest agree with damaged files, so that only their content can tell."""
    manifest = json.loads((directory / MANIFEST).read_text())
    content = {key: value for key, value in manifest.items() if key not in ("format", "files", "digest")}
    write_manifest(directory, content | changes)


def test_planted_faults_are_found_by_their_checks(fake, publications, tmp_path):
    fake.publish(publications[True].files)
    directory = bring(config(publications[True], True), fake, tmp_path).directory
    expected = json.loads((directory / MANIFEST).read_text())["expected"]
    tokens = np.concatenate([read_shard(path) for path in val_files(directory)])
    sidecar = directory / "fineweb_val_bytes_000000.bin"
    good = np.array(read_shard(sidecar))
    operators = Tokenizer.load(directory / "tokenizer.model").processor.piece_to_id(list(CaseOps.operators))
    at = int(np.flatnonzero(np.isin(tokens[: len(good)], operators[:3]))[0])

    def plant(change: Any) -> None:
        sidecar.unlink()
        values = good.copy()
        change(values)
        write_shard(sidecar, values)
        resign(directory)

    def move(values: np.ndarray) -> None:
        values[at] += 1
        values[at + 1] -= 1

    plant(move)
    assert set(failures(directory)) == {"operator bytes"}
    assert "1 operators stand for bytes" in failures(directory)["operator bytes"]
    plant(lambda values: values.__setitem__(0, 2))
    assert {"byte sidecar"} <= set(failures(directory))
    plant(lambda values: values.__setitem__(slice(None), values + (values > 0)))
    assert {"byte sidecar", "byte ratio"} <= set(failures(directory))
    plant(lambda values: None)
    assert failures(directory) == {}
    resign(directory, expected=expected | {"scored_tokens": [47_851_520]})
    assert "0 scored tokens, 47,851,520 are published" in failures(directory)["published figures"]
    resign(directory, expected=expected | {"val_documents": 50_000})
    assert "7 val documents, 50,000 are published" in failures(directory)["published figures"]


class Heard(Silent):
    """A console that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_a_validation_document_in_training_is_said_and_fails_verification(fake, publications, tmp_path):
    publication = publications[True]
    folder = f"datasets/datasets/fineweb10B_{CASEOPS}"
    val = publication.files[f"{folder}/fineweb_val_000000.bin"]
    tokens = np.frombuffer(val, "<u2", offset=1024)
    end = int(np.flatnonzero(tokens == 1)[1])
    train = np.frombuffer(publication.files[f"{folder}/fineweb_train_000000.bin"], "<u2", offset=1024)
    leaked = shard(np.concatenate([tokens[:end], train]))
    fake.publish(publication.files | {f"{folder}/fineweb_train_000000.bin": leaked})
    heard = Heard()
    dataset = config(publication, True).download(tmp_path, heard, lambda: Hub(REPOSITORY, fake.endpoint))
    assert any(line.startswith("1 training documents of the export are also validation") for line in heard.lines)
    assert set(failures(dataset.directory)) == {"disjoint splits"}


def test_bytes_need_no_tokenizer_file(fake, tmp_path):
    encoded = [np.r_[1, np.frombuffer(text.encode(), np.uint8) + 4] for text in ("one é", "two 😀", "three", "four")]
    manifest = {
        "datasets": [
            {"name": "fineweb10B_byte260", "tokenizer_name": "bytes", "stats": {"files_train": 1, "files_val": 1}}
        ],
        "tokenizers": [{"name": "bytes", "kind": "byte", "path": "tokenizers/fineweb_pure_byte_260.json"}],
    }
    folder = "datasets/datasets/fineweb10B_byte260"
    fake.publish(
        {
            "datasets/manifest.json": json.dumps(manifest).encode(),
            f"{folder}/fineweb_val_000000.bin": shard(np.concatenate(encoded[:2])),
            f"{folder}/fineweb_train_000000.bin": shard(np.concatenate(encoded[2:])),
        }
    )
    data = PublishedData(name="bytes", repository=REPOSITORY, variant="byte260", vocab_size=260, train_shards=1)
    dataset = bring(data, fake, tmp_path)
    assert dataset.validation_text() == "one étwo 😀".encode()
    assert dataset.validation().document_bytes.tolist() == [len("one é".encode()), len("two 😀".encode())]
    assert dataset.manifest["byte_accounting"] == "lut" and dataset.manifest["lossless"]
    assert failures(dataset.directory) == {}


@pytest.mark.skipif(not MODEL.is_file(), reason=f"no published tokenizer at {MODEL}")
def test_the_published_caseops_model_is_what_its_option_expects(fake, tmp_path):
    published = publish(True, FrontEnd(CaseOps(), Tokenizer.load(MODEL)))
    fake.publish(published.files)
    known = "97754754561f20def5edd99765ca0668f880bd94e67316d54aa10ab25f45cc4d"
    dataset = bring(config(published, True, tokenizer_sha256=known, vocab_size=8192), fake, tmp_path)
    assert failures(dataset.directory) == {}

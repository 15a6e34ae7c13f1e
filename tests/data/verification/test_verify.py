"""Every damage is found by the check that is there for it, and by no other that need not see it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf.console import Silent
from pgolf.data import shards
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.tokenizer import PublishedSentencePiece, SentencePieceTokenizer
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.index import DocumentIndex, write_index
from pgolf.data.manifest import MANIFEST, canonical_digest, split_totals, write_manifest
from pgolf.data.shards import HEADER_BYTES, read_shard, write_shard
from pgolf.data.verification import structure
from pgolf.data.verification import verify as verify_module
from pgolf.data.verification.verify import verify
from pgolf.errors import UserError

from ..corpus import small_config, write_corpus

STRUCTURE = [
    "manifest",
    "agreement",
    "file sizes",
    "file hashes",
    "tokenizer",
    "document counts",
    "partition",
    "shard headers",
    "shard contents",
    "vocabulary",
    "BOS count",
    "empty documents",
    "document starts",
]
LOSSLESS = ["disjoint splits", "texts", "encoding", "byte table", "byte sidecar", "operators"]
CASEOPS = [name for name in LOSSLESS if name != "byte table"]
PUBLISHED = ["disjoint splits", "byte sidecar", "operators", "byte ratio"]
BOS = 1


def failures(directory: Path, **settings) -> dict[str, str]:
    return {check.name: check.detail for check in verify(directory, **settings) if not check.passed}


def sign_again(directory: Path, **changes) -> None:
    """Make the manifest agree with the damaged files, so that only the content can tell."""
    manifest = json.loads((directory / MANIFEST).read_text())
    content = {k: v for k, v in manifest.items() if k not in ("format", "files", "digest")}
    write_manifest(directory, content | changes)


def totals(directory: Path, split: str, **changes) -> dict:
    """The `splits` of the manifest with changes to one."""
    splits = json.loads((directory / MANIFEST).read_text())["splits"]
    return splits | {split: splits[split] | changes}


def rewrite(path: Path, change) -> None:
    values = np.array(read_shard(path))
    path.unlink()
    write_shard(path, change(values))


def edit_index(directory: Path, split: str, change) -> None:
    index = DocumentIndex(directory, split)
    rows, names = np.array(index.rows), list(index.names())
    change(rows)
    write_index(directory, split, rows, names)


@pytest.fixture(scope="module")
def small_corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def caseops(small_corpus, tmp_path_factory):
    config = small_config(small_corpus, transform=CaseOps(), val_fraction=None, val_docs=20, order="source")
    return config.prepare(tmp_path_factory.mktemp("caseops"), Silent())


@pytest.fixture(scope="module")
def published(small_corpus, tmp_path_factory):
    tokenizer = PublishedSentencePiece(vocab_size=330, normalization="published")
    return small_config(small_corpus, tokenizer=tokenizer).prepare(tmp_path_factory.mktemp("published"), Silent())


@pytest.fixture
def caseops_copy(caseops, tmp_path):
    return Path(shutil.copytree(caseops.directory, tmp_path / "caseops"))


@pytest.fixture
def published_copy(published, tmp_path):
    return Path(shutil.copytree(published.directory, tmp_path / "published"))


@pytest.mark.parametrize(("data", "names"), [("prepared", LOSSLESS), ("caseops", CASEOPS), ("published", PUBLISHED)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_whole_directory_passes_every_check(data, names, workers, request, monkeypatch):
    monkeypatch.setattr(verify_module, "PART_TOKENS", 1000)
    checks = verify(request.getfixturevalue(data).directory, workers=workers)
    assert [check.name for check in checks] == STRUCTURE + names
    assert [check for check in checks if not check.passed] == []


def test_nothing_there_is_one_failed_check(tmp_path):
    assert list(failures(tmp_path)) == ["manifest"]


def test_an_edited_manifest_is_found_alone(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["splits"]["val"]["bytes"] += 1
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert list(failures(copy)) == ["manifest"]
    with pytest.raises(UserError, match="does not match its own digest"):
        Dataset(copy)


def test_another_format_is_said(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    assert "is not a manifest of format 2" in failures(copy)["manifest"]


def test_a_missing_and_a_foreign_file_are_found(copy):
    (copy / "extra.txt").write_text("x")
    assert "does not list: ['extra.txt']" in failures(copy)["file sizes"]
    (copy / "val_bytes_000001.bin").unlink()
    assert "val_bytes_000001.bin is missing" in failures(copy)["file sizes"]


def test_changed_bytes_of_the_same_size_are_found_by_hash_alone(copy):
    names = copy / "names_train.jsonl"
    names.write_bytes(names.read_bytes().replace(b"corpus", b"korpus"))
    assert list(failures(copy)) == ["file hashes"]


def test_a_header_that_promises_something_else_is_found(copy):
    path = copy / "train_000002.bin"
    data = bytearray(path.read_bytes())
    data[8:12] = (len(data) // 2).to_bytes(4, "little")
    path.write_bytes(data)
    found = failures(copy)
    assert "train_000002.bin is truncated" in found["shard headers"] and "file hashes" in found
    assert "file sizes" not in found
    with pytest.raises(UserError, match="its header promises"):
        Dataset(copy)


def test_a_truncated_shard_is_found(copy):
    path = copy / "val_000000.bin"
    path.write_bytes(path.read_bytes()[:-20])
    found = failures(copy)
    assert "its manifest says" in found["file sizes"] and "is truncated" in found["shard headers"]
    assert "not checked" in found["texts"]
    with pytest.raises(UserError, match="its manifest says"):
        Dataset(copy)


@pytest.mark.parametrize("zeros", ["hole", "tail", "body"])
def test_a_zero_filled_shard_is_found(copy, zeros):
    path = copy / "train_000000.bin"
    data = bytearray(path.read_bytes())
    if zeros == "hole":
        values = np.r_[read_shard(path)[:2], np.zeros(1100), 5].astype(int)
        path.unlink()
        write_shard(path, values)
    else:
        begin = HEADER_BYTES if zeros == "body" else len(data) - 2 * 1024
        path.write_bytes(bytes(data[: max(begin, HEADER_BYTES)]) + bytes(len(data) - max(begin, HEADER_BYTES)))
    sign_again(
        copy, splits=totals(copy, "train", tokens=totals(copy, "train")["train"]["tokens"] + (zeros == "hole") * 103)
    )
    found = failures(copy)
    assert "zeros" in found["shard contents"]


def test_another_tokenizer_is_found(copy, tokenizer):
    (copy / "tokenizer.model").write_bytes(tokenizer.model)
    with pytest.raises(UserError, match=r"has \d+ bytes|is not the tokenizer of its manifest"):
        Dataset(copy)
    sign_again(copy)
    assert "is not the tokenizer of the manifest" in failures(copy)["tokenizer"]
    with pytest.raises(UserError, match="is not the tokenizer of its manifest"):
        _ = Dataset(copy).front_end
    (copy / "tokenizer.model").write_bytes(b"damaged")
    assert "is not a SentencePiece model" in failures(copy)["tokenizer"]


def test_a_tokenizer_file_of_the_same_size_is_found_by_the_cheap_check(copy):
    data = bytearray((copy / "tokenizer.model").read_bytes())
    data[100] ^= 1
    (copy / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=r"tokenizer\.model is not the tokenizer of its manifest"):
        Dataset(copy)


def test_an_id_beyond_the_vocabulary_is_found(copy):
    def raise_one(values):
        values[7] = 400
        return values

    rewrite(copy / "train_000001.bin", raise_one)
    sign_again(copy)
    assert failures(copy)["vocabulary"] == "token 7 of train_000001.bin has the id 400, the vocabulary ends at 400."


def test_a_missing_bos_is_found(copy):
    def drop(values):
        values[np.flatnonzero(values == BOS)[1]] = 300
        return values

    rewrite(copy / "val_000000.bin", drop)
    sign_again(copy)
    found = failures(copy)
    assert found["BOS count"] == "the val split has 28 BOS tokens for 29 documents."
    assert "a document does not begin where the index says" in found["document starts"]
    with pytest.raises(UserError, match="is inconsistent"):
        Dataset(copy).validation()


def test_a_bos_that_is_elsewhere_is_found(copy):
    def move(values):
        start = np.flatnonzero(values == BOS)[1]
        values[start], values[start + 5] = values[start + 5], BOS
        return values

    rewrite(copy / "train_000000.bin", move)
    sign_again(copy)
    assert set(failures(copy)) == {"document starts", "texts"}


def test_an_empty_document_is_found(copy):
    def empty(values):
        values[1:12] = BOS
        return values

    rewrite(copy / "train_000003.bin", empty)
    sign_again(copy)
    found = failures(copy)
    assert (
        found["empty documents"]
        == "the document before token 2 of train_000003.bin is empty: two BOS follow each other."
    )
    assert "BOS count" in found


def test_an_empty_document_at_a_shard_end_is_found(copy):
    rewrite(copy / "train_000001.bin", lambda values: np.r_[values[:-1], BOS])
    rewrite(copy / "train_000002.bin", lambda values: np.r_[BOS, values[1:]])
    sign_again(copy)
    assert "before token 0 of train_000002.bin is empty" in failures(copy)["empty documents"]


def test_a_wrong_count_of_documents_is_found(copy):
    sign_again(copy, splits=totals(copy, "train", documents=90))
    found = failures(copy)
    assert found["document counts"] == "the train index counts 91 documents, the manifest says 90."
    assert found["BOS count"] == "the train split has 91 BOS tokens for 90 documents."


def test_a_wrong_count_of_bytes_is_found(copy):
    before = totals(copy, "val")["val"]["bytes"]
    sign_again(copy, splits=totals(copy, "val", bytes=before + 1))
    assert f"counts {before} bytes, the manifest says {before + 1}" in failures(copy)["document counts"]


def test_a_damaged_index_is_found(copy):
    with open(copy / "names_val.jsonl", "a") as file:
        file.write("{not json}\n")
    assert "line 30 cannot be read" in failures(copy)["document counts"]
    (copy / "documents_val.npy").write_bytes(b"\x93NUMPY damaged")
    assert "cannot be read" in failures(copy)["document counts"]


def test_document_numbers_with_a_gap_are_found(caseops_copy):
    sign_again(caseops_copy, splits=totals(caseops_copy, "train", last_document=120))
    assert failures(caseops_copy)["partition"].startswith("the documents are numbered up to 120, but 120 are there")


@pytest.mark.parametrize("val_docs", [19, 21])
def test_another_partition_than_the_rule_is_found(caseops_copy, val_docs):
    recipe = json.loads((caseops_copy / MANIFEST).read_text())["recipe"]
    rule = {"rule": "the first", "val_docs": val_docs}
    sign_again(caseops_copy, split=rule, recipe=recipe | {"split": {"val_docs": val_docs}})
    found = failures(caseops_copy)
    assert found == {"partition": found["partition"]}
    assert f"has 20 documents (numbers 0 to 19), its rule says the first {val_docs}" in found["partition"]


def test_training_that_begins_inside_validation_is_found(caseops_copy):
    sign_again(caseops_copy, splits=totals(caseops_copy, "train", first_document=10))
    assert "training begins with document 10, the rule says 20" in failures(caseops_copy)["partition"]


def test_a_document_on_the_wrong_side_of_its_hash_is_found(copy):
    sign_again(copy, split={"rule": "by hash", "val_fraction": 0.0001})
    assert "against the split rule" in failures(copy)["partition"]


def test_one_flipped_token_is_found_by_hash_and_by_text(copy):
    def flip(values):
        values[10] = 300 if values[10] != 300 else 301
        return values

    rewrite(copy / "train_000000.bin", flip)
    assert set(failures(copy)) == {"file hashes", "texts"}
    sign_again(copy)
    found = failures(copy)
    assert list(found) == ["texts"] and "train document 'corpus.jsonl:" in found["texts"]


def test_swapped_texts_of_the_same_bytes_are_found(copy, prepared):
    """Lengths and byte counts stay right, so only the text can tell."""
    table = [prepared.front_end.piece(token) for token in range(prepared.vocab_size)]

    def swap(values):
        ascii_ids = [
            token for token, piece in enumerate(table) if len(piece) == 1 and piece.isalpha() and piece.isascii()
        ]
        at = next(at for at, token in enumerate(values) if token in ascii_ids)
        values[at] = next(token for token in ascii_ids if token != values[at])
        return values

    rewrite(copy / "train_000000.bin", swap)
    sign_again(copy)
    assert "does not decode to the text whose SHA-256" in failures(copy)["texts"]


def test_tokens_that_the_front_end_would_not_write_are_found(copy, prepared):
    """The same text in other tokens: a word spelled in letters."""
    front_end, path = prepared.front_end, copy / "train_000009.bin"
    values = read_shard(path)
    at = next(at for at, token in enumerate(values) if len(front_end.piece(int(token))) == 2 and token > 259)
    letters = [front_end.tokenizer.processor.piece_to_id(letter) for letter in front_end.piece(int(values[at]))]
    assert len(letters) == 2 and front_end.decode(letters) == front_end.decode([values[at]])
    rewrite(path, lambda values: np.r_[values[:at], letters, values[at + 1 :]])
    stream_end = 9000 + at
    starts = DocumentIndex(copy, "train").starts

    def longer(rows):
        rows["tokens"][np.searchsorted(starts, stream_end, "right") - 1] += 1

    edit_index(copy, "train", longer)
    sign_again(copy, splits=totals(copy, "train", tokens=int(starts[-1]) + 1))
    found = failures(copy)
    assert list(found) == ["encoding"] and "is not stored as the tokens that its front end makes" in found["encoding"]


def test_a_wrong_byte_count_is_found(copy):
    def shift(values):
        values[5] += 1
        values[6] -= 1
        return values

    rewrite(copy / "val_bytes_000000.bin", shift)
    sign_again(copy)
    found = failures(copy)
    assert list(found) == ["byte sidecar"] and "validation token 5 stands for" in found["byte sidecar"]


def test_a_sidecar_of_another_length_is_found(copy):
    last = sorted(copy.glob("val_bytes_*.bin"))[-1]
    rewrite(last, lambda values: values[:-3])
    sign_again(copy)
    assert "validation tokens have 3105 byte counts" in failures(copy)["byte sidecar"]


def test_a_sidecar_that_does_not_sum_to_the_originals_is_found(published_copy):
    def add(values):
        values[5] += 1
        return values

    rewrite(published_copy / "val_bytes_000000.bin", add)
    sign_again(published_copy)
    found = failures(published_copy)
    assert list(found) == ["byte sidecar"] and "in the sidecar" in found["byte sidecar"]


def test_a_bos_that_is_charged_is_found(published_copy):
    def charge(values):
        values[0], values[1] = 1, values[1] - 1
        return values

    rewrite(published_copy / "val_bytes_000000.bin", charge)
    sign_again(published_copy)
    assert "a BOS of the validation split is charged" in failures(published_copy)["byte sidecar"]


def test_a_table_that_counts_otherwise_is_found(copy, monkeypatch):
    """The leading space counted twice (#1719), in the second path."""
    from pgolf.data.encoding.bytes import ByteTable

    stream_bytes = ByteTable.stream_bytes
    monkeypatch.setattr(
        ByteTable, "stream_bytes", lambda self, ids: stream_bytes(self, ids) + self.leading_space[ids].astype(np.int32)
    )
    found = failures(copy)
    assert list(found) == ["byte table"] and "by the table of bytes per id" in found["byte table"]


def test_a_wrong_recorded_length_is_found(copy):
    def lengthen(rows):
        rows["bytes"][0] += 1

    edit_index(copy, "train", lengthen)
    totals_now = split_totals(copy, "train", sorted(copy.glob("train_*.bin")))
    sign_again(copy, splits=totals(copy, "train", **totals_now))
    assert "the index says" in failures(copy)["texts"]


@pytest.mark.parametrize("data", ["caseops", "published"])
def test_a_text_in_both_splits_is_found_from_the_tokens(data, tmp_path, request):
    """The index is left as it was: only the tokens of the last training document are those of a validation document."""
    directory = Path(shutil.copytree(request.getfixturevalue(data).directory, tmp_path / "copy"))
    dataset = Dataset(directory)
    lengths = DocumentIndex(directory, "val").rows["tokens"]
    validation = dataset.validation()
    start = int(validation.document_starts[0])
    text = validation.tokens[start + 1 : start + 1 + int(lengths[0])]
    stream = np.concatenate([read_shard(path) for path in dataset.train_files])
    begin = int(DocumentIndex(directory, "train").starts[-2])
    stream = np.r_[stream[: begin + 1], text]
    for number, path in enumerate(dataset.train_files):
        path.unlink()
        if len(part := stream[1000 * number : 1000 * number + 1000]):
            write_shard(path, part)

    def shorten(rows):
        rows["tokens"][-1] = len(text)

    edit_index(directory, "train", shorten)
    files = [path for path in dataset.train_files if path.exists()]
    sign_again(directory, splits=totals(directory, "train", **split_totals(directory, "train", files)))
    found = failures(directory)
    assert "is also the training document" in found["disjoint splits"]
    assert set(found) == {"disjoint splits", *(["texts"] if data == "caseops" else [])}


def test_transformed_data_under_a_manifest_without_a_transform_are_found(caseops_copy):
    front_end = json.loads((caseops_copy / MANIFEST).read_text())["front_end"]
    sign_again(caseops_copy, front_end=front_end | {"transform": None})
    found = failures(caseops_copy)
    assert "the text was transformed but would be charged as if it were not" in found["operators"]
    assert {"texts", "byte sidecar"} <= set(found)


def test_untransformed_data_under_a_manifest_with_a_transform_are_found(small_corpus, caseops, tmp_path):
    """A tokenizer with operators, on text that was never transformed."""
    model = tmp_path / "caseops.model"
    model.write_bytes(caseops.front_end.tokenizer.model)
    from pgolf.data.encoding.tokenizer import TokenizerFile

    config = small_config(small_corpus, tokenizer=TokenizerFile(path=str(model)))
    directory = config.prepare(tmp_path / "root", Silent()).directory
    assert failures(directory) == {}
    front_end = json.loads((directory / MANIFEST).read_text())["front_end"]
    sign_again(directory, front_end=front_end | {"transform": CaseOps().identity()})
    found = failures(directory)
    assert "no text was transformed, though the manifest says so" in found["operators"] and "encoding" in found


def test_a_configuration_that_asks_for_something_else_is_a_check_of_its_own(caseops, small_corpus):
    same = small_config(small_corpus, transform=CaseOps(), val_fraction=None, val_docs=20, order="source")
    assert failures(caseops.directory, differences=same.differences) == {}
    plain = small_config(small_corpus, val_fraction=None, val_docs=40, tokenizer=SentencePieceTokenizer(vocab_size=500))
    found = failures(caseops.directory, differences=plain.differences)
    assert list(found) == ["configuration"]
    for words in (
        "data.transform: prepared with kind=lossless_caps",
        "vocab_size=500",
        "val_docs=20, the configuration",
    ):
        assert words in found["configuration"]


@pytest.mark.parametrize("transform", ["caseops", "none"])
def test_text_without_capitals_needs_no_operators(transform, tmp_path):
    path = tmp_path / "lower.jsonl"
    path.write_text(write_corpus(path).read_text().lower())
    config = small_config(path, transform=CaseOps() if transform == "caseops" else None)
    assert failures(config.prepare(tmp_path / "root", Silent()).directory) == {}


@pytest.mark.parametrize("block", [1, 7, 100])
def test_the_checks_do_not_depend_on_how_much_is_read_at_a_time(copy, block, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", block)
    assert failures(copy) == {}
    monkeypatch.setattr(structure, "ZERO_RUN", 20)
    rewrite(copy / "train_000001.bin", lambda values: np.where((np.arange(len(values)) - 30) // 19 == 0, 0, values))
    assert "shard contents" not in failures(copy)
    rewrite(copy / "train_000001.bin", lambda values: np.where((np.arange(len(values)) - 30) // 20 == 0, 0, values))
    assert "a run of 20 zeros or more" in failures(copy)["shard contents"]


@pytest.mark.parametrize("block", [1, 2, 10**6])
def test_an_empty_document_is_found_across_blocks(copy, block, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", block)
    starts = DocumentIndex(copy, "train").starts

    def two(values):
        values[starts[2] + 1] = BOS
        return values

    rewrite(copy / "train_000000.bin", two)
    assert (
        f"the document before token {starts[2] + 1} of train_000000.bin is empty" in failures(copy)["empty documents"]
    )


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("recipe", "transform", None, "transform: kind=lossless_caps_caseops_v1 and none"),
        ("recipe", "split", {"val_docs": 50_000}, "split: val_docs=20 and val_docs=50000"),
        ("front_end", "transform", None, "transform: none and kind=lossless_caps_caseops_v1"),
        (None, "vocab_size", 401, "vocab_size: 400 and 401"),
        (None, "bos_id", 2, "id of BOS: 1 and 2"),
        (None, "lossless", False, "lossless: True and False"),
        (None, "recipe", None, "neither what was prepared nor what was downloaded"),
        (None, "byte_files", [], "number of byte count files"),
        (None, "byte_accounting", "lut", "a table for plain text"),
        (None, "front_end", {}, "a part is missing or of another kind (KeyError('tokenizer'))"),
    ],
)
def test_a_manifest_that_was_edited_and_signed_again_contradicts_itself(caseops_copy, part, key, value, says):
    manifest = json.loads((caseops_copy / MANIFEST).read_text())
    change = {key: value} if part is None else {part: manifest[part] | {key: value}}
    sign_again(caseops_copy, **change)
    assert says in failures(caseops_copy)["agreement"]
    with pytest.raises(UserError, match="edited") as refused:
        Dataset(caseops_copy)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (["files"], "its files is no dict"),
        (["vocab_size"], "its vocab_size is no int"),
        (["splits", "val"], "the split val has no files"),
        (["splits", "train", "files"], "the split train has no files"),
        (["splits", "train", "tokens"], "the split train lacks one of the numbers"),
        (["files", "train_000000.bin"], "the file 'train_000000.bin' has no size or no hash"),
        (["byte_files"], "its byte_files is no list"),
    ],
)
def test_a_manifest_that_lacks_a_part_is_a_sentence(copy, path, says):
    manifest = json.loads((copy / MANIFEST).read_text())
    *above, last = path
    inner = manifest
    for key in above:
        inner = inner[key]
    inner[last] = None
    del manifest["digest"]
    (copy / MANIFEST).write_text(json.dumps(manifest | {"digest": canonical_digest(manifest)}))
    found = failures(copy)
    assert list(found) == ["manifest"] and says in found["manifest"]
    with pytest.raises(UserError, match="was edited"):
        Dataset(copy)


def test_a_listed_shard_without_an_entry_is_a_sentence(copy):
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["files"]["train_000001.bin"], manifest["digest"]
    (copy / MANIFEST).write_text(json.dumps(manifest | {"digest": canonical_digest(manifest)}))
    assert "the shard 'train_000001.bin' is not among its files" in failures(copy)["manifest"]


@pytest.mark.parametrize(("key", "value"), [("val_documents", 50_000), ("scored_tokens", 2048 * 7)])
def test_published_figures_that_do_not_hold_are_found(published_copy, key, value):
    scored = (totals(published_copy, "val")["val"]["tokens"] - 1) // 2048 * 2048
    sign_again(published_copy, expected={"val_documents": 29, "scored_tokens": scored})
    assert failures(published_copy) == {}
    sign_again(published_copy, expected={key: value})
    assert f"{value:,} are published: it is another split" in failures(published_copy)["published figures"]


def test_bytes_charged_far_from_the_text_are_found_in_downloaded_data(published_copy, monkeypatch):
    manifest = json.loads((published_copy / MANIFEST).read_text())
    monkeypatch.setattr(verify_module, "RATIO_TOLERANCE", 0.2)
    sign_again(published_copy, recipe=None, origin={"repository": "someone/data"})
    assert failures(published_copy) == {}
    monkeypatch.setattr(FrontEnd, "decode_documents", lambda self, ids, lengths: ["x"] * len(lengths))
    assert manifest["recipe"] and "bits per byte would be wrong" in failures(published_copy)["byte ratio"]


def test_the_digest_covers_every_figure(prepared):
    manifest = dict(prepared.manifest)
    assert manifest.pop("digest") == canonical_digest(manifest) == prepared.digest

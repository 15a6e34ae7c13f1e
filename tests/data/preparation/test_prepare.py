"""Preparation: whole or not there, resumed shard by shard, reused, deterministic, and honest about what it counted."""

import inspect
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from pgolf.console import Silent
from pgolf.data.config import DataConfig
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.tokenizer import PublishedSentencePiece, SentencePieceTokenizer
from pgolf.data.encoding.transform import CaseOps
from pgolf.data.preparation import encode, prepare
from pgolf.data.preparation.writer import SplitWriter
from pgolf.data.sources.documents import sift
from pgolf.data.sources.pydocs import PythonDocs
from pgolf.data.sources.text import TextFiles
from pgolf.data.verification.verify import verify
from pgolf.errors import UserError
from pgolf.files import write_bytes

from ..corpus import small_config, small_documents, write_corpus

CHECKOUT = Path(__file__).parents[3]
STREAMED = {"val_fraction": None, "val_docs": 30, "order": "source", "duplicates": "refuse"}


class Listening(Silent):
    def __init__(self):
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl")


def tree(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def test_the_data_set_gives_back_the_documents(prepared):
    validation = prepared.validation()
    texts = prepared.validation_text()
    training = b"".join(prepared.training_text())
    originals = small_documents(120)
    assert len(texts) + len(training) == sum(len(text.encode()) for text in originals)
    starts = [*validation.document_starts, len(validation.tokens)]
    for start, end, size in zip(starts, starts[1:], validation.document_bytes, strict=False):
        text = prepared.decode(validation.tokens[start + 1 : end])
        assert text in originals and text.encode() in texts
        assert len(text.encode()) == size == validation.token_bytes[start:end].sum()
    assert prepared.bos_id == 1
    assert (validation.tokens[validation.document_starts] == 1).all()
    assert (validation.token_bytes[validation.document_starts] == 0).all()
    assert len(validation.names) == len(validation.document_starts)
    assert validation.tokens.dtype == np.uint16 and validation.token_bytes.dtype == np.int32
    assert validation.document_bytes.dtype == validation.document_starts.dtype == np.int64
    assert len(prepared.train_files) > 2
    assert prepared.decode(prepared.encode("naïve ☃\n")) == "naïve ☃\n"


def test_head_cuts_documents_and_recounts_the_cut_ones(prepared):
    validation = prepared.validation()
    lengths = np.diff([*validation.document_starts, len(validation.tokens)])
    limit = int(np.sort(lengths[:5])[2])
    head = validation.head(5, limit)
    assert len(head.names) == 5
    np.testing.assert_array_equal(np.diff([*head.document_starts, len(head.tokens)]), np.minimum(lengths[:5], limit))
    for index, start in enumerate(head.document_starts):
        end = [*head.document_starts, len(head.tokens)][index + 1]
        assert head.tokens[start] == 1
        assert head.token_bytes[start:end].sum() == head.document_bytes[index]
    whole = validation.head(10_000, 10_000)
    np.testing.assert_array_equal(whole.tokens, validation.tokens)
    np.testing.assert_array_equal(whole.document_bytes, validation.document_bytes)
    with pytest.raises(ValueError, match="at least 1 document"):
        validation.head(0, 10)


def test_a_second_call_reuses_and_says_so(corpus, tmp_path):
    config, root = small_config(corpus), tmp_path / "root"
    first, second = Listening(), Listening()
    one = config.prepare(root, first)
    assert first.said[0].startswith("Preparing small data in ")
    before = {path: path.stat().st_mtime_ns for path in one.directory.iterdir()}
    two = config.prepare(root, second)
    assert before == {path: path.stat().st_mtime_ns for path in two.directory.iterdir()}
    assert one.digest == two.digest
    assert second.said == [f"Reusing the prepared data in {one.directory}."]
    assert "120 documents" not in " ".join(second.said)
    assert "training documents" in first.said[-1]


def test_the_same_recipe_gives_the_same_bytes(corpus, tmp_path):
    one, two = (small_config(corpus).prepare(tmp_path / name, Silent()).directory for name in "ab")
    assert one.name == two.name and tree(one) == tree(two)


@pytest.mark.parametrize(
    "change",
    [
        {"val_fraction": 0.3},
        {"shard_tokens": 900},
        {"order": "source"},
        {"duplicates": "refuse"},
        {"val_fraction": None, "val_docs": 20},
        {"transform": CaseOps()},
        {"tokenizer": SentencePieceTokenizer(vocab_size=401)},
    ],
)
def test_another_recipe_is_another_directory(corpus, tmp_path, change):
    assert small_config(corpus).directory(tmp_path) != small_config(corpus, **change).directory(tmp_path)


def test_a_changed_file_is_another_directory(corpus, tmp_path):
    before = small_config(corpus).directory(tmp_path)
    write_corpus(corpus, count=119)
    assert small_config(corpus).directory(tmp_path) != before


def test_the_number_of_workers_is_not_part_of_the_recipe(corpus, tmp_path):
    assert small_config(corpus).directory(tmp_path) == small_config(corpus, workers=7).directory(tmp_path)


@pytest.mark.parametrize("rule", [{}, STREAMED])
def test_the_tokenizer_sees_training_documents_only(corpus, tmp_path, rule):
    class Recording(SentencePieceTokenizer):
        def train(self, texts, symbols=()):
            seen.extend(texts)
            return super().train(seen, symbols)

    seen: list[str] = []
    config = small_config(corpus, tokenizer=Recording(vocab_size=400), **rule)
    dataset = config.prepare(tmp_path / "root", Silent())
    assert seen == [text.decode() for text in dataset.training_text()]
    trained = small_config(corpus, **rule).train_tokenizer(tmp_path / "alone.model", Silent())
    assert trained.tokenizer.model == dataset.front_end.tokenizer.model == (tmp_path / "alone.model").read_bytes()


def test_order_source_keeps_the_order_of_the_files(corpus, tmp_path):
    dataset = small_config(corpus, order="source").prepare(tmp_path / "root", Silent())
    numbers = [int(text.split(maxsplit=2)[1]) for text in dataset.training_text()]
    assert numbers == sorted(numbers)


def test_the_published_rule_holds_out_the_first_documents(corpus, tmp_path):
    dataset = small_config(corpus, **STREAMED).prepare(tmp_path / "root", Silent())
    originals = small_documents(120)
    assert dataset.validation_text().decode() == "".join(originals[:30])
    assert [text.decode() for text in dataset.training_text()] == originals[30:]
    splits = dataset.manifest["splits"]
    assert [splits["val"][key] for key in ("first_document", "last_document", "documents")] == [0, 29, 30]
    assert [splits["train"][key] for key in ("first_document", "last_document", "documents")] == [30, 119, 90]


def test_too_few_documents_for_val_docs_is_a_sentence(corpus, tmp_path):
    with pytest.raises(
        UserError, match=r"data\.val_docs=120 .*only 120, .*: set data\.val_docs below 120, or give more"
    ):
        small_config(corpus, **STREAMED | {"val_docs": 120}).prepare(tmp_path / "root", Silent())
    assert visible(tmp_path / "root") == []


def test_caseops_keeps_every_text(corpus, tmp_path):
    dataset = small_config(corpus, transform=CaseOps()).prepare(tmp_path / "root", Silent())
    assert dataset.manifest["lossless"] and dataset.manifest["front_end"]["transform"] == CaseOps().identity()
    texts = [text.decode() for text in dataset.training_text()] + [dataset.validation_text().decode()]
    assert sorted("".join(texts)) == sorted("".join(small_documents(120)))
    validation = dataset.validation()
    assert validation.token_bytes.sum() == validation.document_bytes.sum() == len(dataset.validation_text())


def test_documents_that_normalisation_empties_are_left_out_and_counted(tmp_path):
    lines = [json.dumps({"text": text}) for text in ["   ", *small_documents(60), "\u200b \n"]]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    config = small_config(
        tmp_path / "corpus.jsonl",
        tokenizer=PublishedSentencePiece(vocab_size=330, normalization="published"),
        **STREAMED | {"val_docs": 10},
    )
    console = Listening()
    dataset = config.prepare(tmp_path / "root", console)
    val, train = dataset.manifest["splits"]["val"], dataset.manifest["splits"]["train"]
    assert (val["documents"], val["no_token_left"], train["documents"], train["no_token_left"]) == (9, 1, 51, 1)
    assert dataset.manifest["left_out"] == {"no_token_left": 2} and not dataset.manifest["lossless"]
    assert "left out: 2 no_token_left." in console.said[-1]
    originals = [len(text.encode()) for text in small_documents(9)]
    assert dataset.validation().document_bytes.tolist() == originals
    assert dataset.validation().token_bytes.sum() == sum(originals)
    assert [check for check in verify(dataset.directory) if not check.passed] == []


CHILD = """
import os, signal, sys
from pathlib import Path
from pgolf.console import Silent
from pgolf.data.preparation import encode
from pgolf.data.preparation import writer
sys.path.insert(0, sys.argv[4])
from tests.data.corpus import small_config
after, rule = int(sys.argv[3]), eval(sys.argv[5])
encode.INLINE_CHARACTERS = int(sys.argv[6])
finished = 0
record = writer.SplitWriter._record
def recorded(self):
    global finished
    record(self)
    finished += 1
    if finished == after:
        os.kill(os.getpid(), signal.SIGKILL)
writer.SplitWriter._record = recorded
if __name__ == "__main__":
    small_config(Path(sys.argv[1]), **rule).prepare(Path(sys.argv[2]), Silent())
"""


def child(corpus: Path, root: Path, after: int, rule: dict, inline: int = 10**9) -> list[str]:
    arguments = [str(corpus), str(root), str(after), str(CHECKOUT), repr(rule), str(inline)]
    return [sys.executable, "-c", CHILD, *arguments]


@pytest.mark.parametrize("rule", [{}, STREAMED])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_killed_preparation_goes_on_after_its_last_shard_to_the_same_bytes(
    corpus, tmp_path, after, rule, monkeypatch
):
    whole = small_config(corpus, **rule).prepare(tmp_path / "whole", Silent())
    root, console = tmp_path / "root", Listening()
    finished = subprocess.run(child(corpus, root, after, rule), cwd=CHECKOUT, capture_output=True, text=True)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert visible(root) == []
    shards = [path.stat() for path in sorted(root.glob(".*.partial/data/train_*.bin"))]
    monkeypatch.setattr(prepare, "train_front_end", lambda *arguments: pytest.fail("the tokenizer is trained again"))
    dataset = small_config(corpus, **rule).prepare(root, console)
    assert f"{after} validation" in " ".join(console.said) or f"{len(shards)} training" in " ".join(console.said)
    assert "Continuing the preparation that was interrupted" in " ".join(console.said)
    for before, path in zip(shards, dataset.train_files, strict=False):
        assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)
    assert tree(dataset.directory) == tree(whole.directory)
    assert [path for path in root.iterdir() if path.is_dir()] == [dataset.directory]


def test_several_workers_give_the_same_bytes(corpus, tmp_path):
    """Also when they are killed in the middle, and by another number of workers afterwards."""
    whole = small_config(corpus).prepare(tmp_path / "whole", Silent())
    command = child(corpus, tmp_path / "root", 3, {"workers": 2}, inline=1)
    finished = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    command = child(corpus, tmp_path / "root", 0, {"workers": 3}, inline=1)
    subprocess.run(command, cwd=CHECKOUT, check=True)
    (directory,) = (path for path in (tmp_path / "root").iterdir() if path.is_dir())
    assert tree(directory) == tree(whole.directory)


def test_small_corpora_are_encoded_in_this_process(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "in_processes", lambda *arguments: pytest.fail("processes were started"))
    small_config(corpus, workers=8).prepare(tmp_path, Silent())


def full_after(shards: int, monkeypatch) -> None:
    """The disk is full once so many shards are finished."""
    write = SplitWriter._write_shard

    def fill(self):
        if self.split == "train" and self.shards == shards:
            raise OSError(28, "No space left on device")
        write(self)

    monkeypatch.setattr(SplitWriter, "_write_shard", fill)


def test_a_full_disk_keeps_what_is_finished_and_says_how_to_go_on(corpus, tmp_path, monkeypatch):
    whole = small_config(corpus).prepare(tmp_path / "whole", Silent())
    with monkeypatch.context() as patch:
        full_after(4, patch)
        with pytest.raises(UserError, match=r"No space left on device\. The same command continues after the last"):
            small_config(corpus).prepare(tmp_path / "root", Silent())
    assert visible(tmp_path / "root") == []
    console = Listening()
    again = small_config(corpus).prepare(tmp_path / "root", console)
    assert "4 training and" in console.said[1] and tree(again.directory) == tree(whole.directory)


def test_a_preparation_that_can_never_succeed_leaves_nothing(corpus, tmp_path):
    with open(corpus, "a") as file:
        file.write("no json\n")
    with pytest.raises(UserError, match="line 121 is not JSON"):
        small_config(corpus, **STREAMED).prepare(tmp_path / "root", Silent())
    assert [path for path in (tmp_path / "root").iterdir() if path.is_dir()] == []


def test_a_damaged_directory_is_refused_and_not_overwritten(corpus, tmp_path):
    config = small_config(corpus)
    directory = config.prepare(tmp_path / "root", Silent()).directory
    (directory / "val_000000.bin").unlink()
    before = tree(directory)
    with pytest.raises(UserError, match=r"val_000000\.bin is missing; delete"):
        config.prepare(tmp_path / "root", Silent())
    assert tree(directory) == before


def test_a_directory_of_another_configuration_is_not_reused(corpus, tmp_path):
    """Shards that were linked or copied to where another configuration looks for its own (#2071)."""
    transformed = small_config(corpus, transform=CaseOps()).prepare(tmp_path, Silent()).directory
    plain = small_config(corpus)
    plain.directory(tmp_path).symlink_to(transformed)
    with pytest.raises(UserError, match=r"data.transform: prepared with kind=lossless_caps.*, the configuration says"):
        plain.prepare(tmp_path, Silent())


def test_two_processes_prepare_once(corpus, tmp_path):
    root = tmp_path / "root"
    running = [subprocess.Popen(child(corpus, root, 0, {}), cwd=CHECKOUT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert len(visible(root)) == 1


@pytest.mark.parametrize(
    ("lie", "sentence"), [(str.swapcase, "does not survive"), (lambda text: "lost", "decode to 4")]
)
def test_a_tokenizer_that_changes_text_is_refused_by_name(corpus, tmp_path, monkeypatch, lie, sentence):
    decode = FrontEnd.decode_documents
    monkeypatch.setattr(FrontEnd, "decode_documents", lambda *given: [lie(text) for text in decode(*given)])
    with pytest.raises(UserError, match=rf"document 'corpus.jsonl:\d+' does not survive .*{sentence}|{sentence}"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_tokens_that_are_charged_other_bytes_are_refused_by_name(corpus, tmp_path, monkeypatch):
    encode_documents = FrontEnd.encode_documents

    def more(self, texts):
        encoded = encode_documents(self, texts)
        encoded.token_bytes[-1] += 1
        return encoded

    monkeypatch.setattr(FrontEnd, "encode_documents", more)
    with pytest.raises(UserError, match=r"document 'corpus.jsonl:\d+': its tokens are charged \d+ bytes but"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_document_that_cannot_be_encoded_is_named(tmp_path):
    texts = small_documents(60)
    texts[40] = "far" + " " * 70_000 + "away"
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = PublishedSentencePiece(vocab_size=330, normalization="published")
    with pytest.raises(UserError, match=r"document 'corpus.jsonl:41' cannot be encoded: a token would stand for 700"):
        small_config(tmp_path / "corpus.jsonl", tokenizer=tokenizer).prepare(tmp_path / "root", Silent())


def test_texts_that_normalisation_makes_equal_on_both_sides_are_said(tmp_path):
    texts = small_documents(60)
    texts[40] = texts[3].replace("Document", " Document ")
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tokenizer = PublishedSentencePiece(vocab_size=330, normalization="published")
    config = small_config(tmp_path / "corpus.jsonl", tokenizer=tokenizer, **STREAMED | {"val_docs": 10})
    console = Listening()
    directory = config.prepare(tmp_path / "root", console).directory
    said = next(line for line in console.said if "have the tokens of a validation document" in line)
    assert said.startswith("1 training documents") and "is 'corpus.jsonl:41', like 'corpus.jsonl:4'" in said
    assert [check.name for check in verify(directory) if not check.passed] == ["disjoint splits"]


def test_an_id_that_delimits_documents_is_refused(corpus, tmp_path, monkeypatch):
    encode_documents = FrontEnd.encode_documents

    def with_bos(self, texts):
        encoded = encode_documents(self, texts)
        encoded.ids[-3] = 1
        return encoded

    monkeypatch.setattr(FrontEnd, "encode_documents", with_bos)
    with pytest.raises(
        UserError, match=r"document 'corpus.jsonl:\d+' is encoded with the id 1, which no text may have"
    ):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_recorded_length_that_is_wrong_is_refused_by_name(corpus, tmp_path, monkeypatch):
    def longer(self, console, left_out):
        texts = ((str(number), text) for number, text in enumerate(small_documents(120)))
        for document in sift(texts, 1, left_out):
            yield document._replace(num_bytes=document.num_bytes + (document.name == "77"))

    monkeypatch.setattr(TextFiles, "documents", longer)
    with pytest.raises(UserError, match=r"document '77'"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_text_in_both_splits_is_refused_or_dropped(corpus, tmp_path):
    with open(corpus, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": small_documents(1)[0]}) + "\n")
    with pytest.raises(
        UserError, match=r"'corpus.jsonl:121' has the same text as .*'corpus.jsonl:1' .*duplicates=drop"
    ):
        small_config(corpus, **STREAMED).prepare(tmp_path / "root", Silent())
    assert visible(tmp_path / "root") == []
    dataset = small_config(corpus, **STREAMED | {"duplicates": "drop"}).prepare(tmp_path / "root", Silent())
    assert dataset.manifest["left_out"] == {"duplicate": 1}
    assert len(list(dataset.training_text())) == 90


def test_what_is_left_out_is_in_the_manifest_and_said(corpus, tmp_path):
    with open(corpus, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "a literal ▁ mark"}) + "\n")
        file.write(json.dumps({"text": small_documents(1)[0]}) + "\n")
    console = Listening()
    dataset = small_config(corpus).prepare(tmp_path / "root", console)
    assert dataset.manifest["left_out"] == {"duplicate": 1}
    assert "left out: 1 duplicate." in console.said[-1]
    texts = [*dataset.training_text(), dataset.validation_text()]
    assert any("a literal ▁ mark".encode() in text for text in texts)


@pytest.mark.parametrize(
    "change",
    [
        {"val_fraction": 0.0},
        {"val_docs": 3},
        {"shard_tokens": 1},
        {"order": "random"},
        {"duplicates": "maybe"},
        {"workers": 0},
        {"name": "a/b"},
    ],
)
def test_impossible_settings_are_refused(corpus, change):
    with pytest.raises(ValueError):
        small_config(corpus, **change)


def test_an_unwritable_root_is_a_sentence(corpus, tmp_path):
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(UserError, match=r"paths\.data"):
        small_config(corpus).prepare(tmp_path / "file", Silent())


@pytest.mark.parametrize("name", ["pydocs", "text", "docs"])
def test_the_yaml_files_name_every_argument(name):
    node = yaml.safe_load((CHECKOUT / "conf" / "data" / f"{name}.yaml").read_text())
    groups = {key for entry in node.pop("defaults") for key in entry}
    source = PythonDocs if name == "pydocs" else TextFiles
    assert groups == {"transform", "tokenizer"}
    for child, made, elsewhere in ((node, DataConfig, groups), (node["source"], source, set())):
        assert child.pop("_target_") == f"{made.__module__}.{made.__qualname__}"
        parameters = inspect.signature(made).parameters
        assert set(child) | elsewhere == set(parameters)
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())


def test_the_published_preparation():
    node = yaml.safe_load((CHECKOUT / "conf" / "data" / "docs.yaml").read_text())
    assert {"transform": "none"} in node["defaults"] and {"tokenizer": "sentencepiece_published"} in node["defaults"]
    assert (node["val_docs"], node["shard_tokens"], node["order"]) == (50_000, 100_000_000, "source")


def test_data_that_a_configuration_does_not_ask_for_are_named(corpus, prepared):
    same = small_config(corpus)
    assert same.differences(prepared.manifest) == []
    prepared.refuse([])
    other = small_config(
        corpus, transform=CaseOps(), val_fraction=0.3, tokenizer=SentencePieceTokenizer(vocab_size=401)
    )
    found = other.differences(prepared.manifest)
    assert [line.partition(":")[0] for line in found] == ["data.transform", "data.tokenizer", "data.split"]
    assert "prepared with none, the configuration says kind=lossless_caps_caseops_v1" in found[0]
    with pytest.raises(UserError, match=r"holds other data than the configuration asks for: data\.transform: prepared"):
        prepared.refuse(found)
    downloaded = {key: value for key, value in prepared.manifest.items() if key != "recipe"}
    assert same.differences(downloaded) == ["the data were downloaded, the configuration prepares its own"]

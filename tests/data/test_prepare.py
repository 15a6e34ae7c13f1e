"""Preparation: whole or not there, reused, deterministic, and honest about what it counted."""

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
from pgolf.data import documents as documents_module
from pgolf.data import prepare as prepare_module
from pgolf.data.dataset import DataConfig
from pgolf.data.documents import sift
from pgolf.data.pydocs import PythonDocs
from pgolf.data.text import TextFiles
from pgolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from pgolf.data.verify import verify
from pgolf.errors import UserError
from pgolf.files import write_bytes

from .corpus import small_config, small_documents, write_corpus

CHECKOUT = Path(__file__).parents[2]


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
        {"tokenizer": SentencePieceTokenizer(vocab_size=401)},
    ],
)
def test_another_recipe_is_another_directory(corpus, tmp_path, change):
    assert small_config(corpus).directory(tmp_path) != small_config(corpus, **change).directory(tmp_path)


def test_a_changed_file_is_another_directory(corpus, tmp_path):
    before = small_config(corpus).directory(tmp_path)
    write_corpus(corpus, count=119)
    assert small_config(corpus).directory(tmp_path) != before


def test_the_tokenizer_sees_training_documents_only(corpus, tmp_path):
    class Recording(SentencePieceTokenizer):
        def train(self, texts):
            seen.extend(texts)
            return super().train(seen)

    seen: list[str] = []
    config = small_config(corpus)
    config.tokenizer = Recording(vocab_size=400)
    dataset = config.prepare(tmp_path / "root", Silent())
    assert seen == [text.decode() for text in dataset.training_text()]
    trained = small_config(corpus).train_tokenizer(tmp_path / "alone.model", Silent())
    assert trained.model == dataset.tokenizer.model == (tmp_path / "alone.model").read_bytes()


def test_order_source_keeps_the_order_of_the_files(corpus, tmp_path):
    dataset = small_config(corpus, order="source").prepare(tmp_path / "root", Silent())
    numbers = [int(text.split(maxsplit=2)[1]) for text in dataset.training_text()]
    assert numbers == sorted(numbers)


KILLED = """
import os, signal, sys
from pathlib import Path
from pgolf.console import Silent
from pgolf.data import prepare
sys.path.insert(0, sys.argv[3])
from tests.data.corpus import small_config
calls = 0
write = prepare.ShardWriter._flush
def flush(self):
    global calls
    calls += 1
    if calls == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self)
prepare.ShardWriter._flush = flush
small_config(Path(sys.argv[1])).prepare(Path(sys.argv[2]), Silent())
"""


def test_a_killed_preparation_leaves_nothing_that_looks_finished(corpus, tmp_path):
    root = tmp_path / "root"
    command = [sys.executable, "-c", KILLED, str(corpus), str(root), str(CHECKOUT)]
    finished = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert visible(root) == []
    assert any((root / name).is_dir() for name in [p.name for p in root.iterdir()])
    dataset = small_config(corpus).prepare(root, Silent())
    assert all(check.passed for check in verify(dataset.directory))
    assert [path for path in root.iterdir() if path.is_dir()] == [dataset.directory]


def test_a_failed_preparation_cleans_up(corpus, tmp_path, monkeypatch):
    def full_disk(directory, entries):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_documents", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        small_config(corpus).prepare(tmp_path / "root", Silent())
    assert [path for path in (tmp_path / "root").iterdir() if path.is_dir()] == []


def test_a_damaged_directory_is_refused_and_not_overwritten(corpus, tmp_path):
    config = small_config(corpus)
    directory = config.prepare(tmp_path / "root", Silent()).directory
    (directory / "val_000000.bin").unlink()
    before = tree(directory)
    with pytest.raises(UserError, match=r"val_000000\.bin is missing; delete"):
        config.prepare(tmp_path / "root", Silent())
    assert tree(directory) == before


def test_two_processes_prepare_once(corpus, tmp_path):
    root = tmp_path / "root"
    code = KILLED.replace("calls == 3", "False")
    command = [sys.executable, "-c", code, str(corpus), str(root), str(CHECKOUT)]
    running = [subprocess.Popen(command, cwd=CHECKOUT) for _ in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert len(visible(root)) == 1


def test_a_tokenizer_that_loses_text_is_refused_by_name(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: "lost")
    with pytest.raises(UserError, match=r"document 'corpus.jsonl:\d+': its tokens decode to 4"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_tokenizer_that_swaps_text_is_refused_by_name(corpus, tmp_path, monkeypatch):
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decode(self, ids).swapcase())
    with pytest.raises(UserError, match=r"document 'corpus.jsonl:\d+' does not survive"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_recorded_length_that_is_wrong_is_refused_by_name(corpus, tmp_path, monkeypatch):
    def longer(self, console):
        gathered = sift(((str(i), text) for i, text in enumerate(small_documents(120))), 1)
        last = gathered.documents[77]
        gathered.documents[77] = documents_module.Document(last.name, last.text, last.num_bytes + 1)
        return gathered

    monkeypatch.setattr(TextFiles, "gather", longer)
    with pytest.raises(UserError, match=r"document '77'"):
        small_config(corpus).prepare(tmp_path / "root", Silent())


def test_a_text_in_both_splits_is_refused(corpus, tmp_path, monkeypatch):
    def overlapping(documents, val_fraction, order):
        return documents[:60], documents[59:]

    monkeypatch.setattr(prepare_module, "split", overlapping)
    with pytest.raises(UserError, match=r"is also the training document 'corpus.jsonl:60'"):
        small_config(corpus).prepare(tmp_path / "root", Silent())
    assert visible(tmp_path / "root") == []


def test_an_empty_split_is_a_sentence(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "only one document"}) + "\n")
    with pytest.raises(UserError, match=r"falls in the (training|validation) split with"):
        small_config(path).prepare(tmp_path / "root", Silent())


def test_what_is_left_out_is_in_the_manifest_and_said(corpus, tmp_path):
    with open(corpus, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "a literal ▁ mark"}) + "\n")
        file.write(json.dumps({"text": small_documents(1)[0]}) + "\n")
    console = Listening()
    dataset = small_config(corpus).prepare(tmp_path / "root", console)
    assert dataset.manifest["skipped"] == {"contains_u2581": 1, "duplicate": 1}
    assert "left out: 1 contains_u2581, 1 duplicate." in console.said[-1]


@pytest.mark.parametrize(
    "change",
    [{"val_fraction": 0.0}, {"shard_tokens": 1}, {"order": "random"}, {"name": "a/b"}],
)
def test_impossible_settings_are_refused(corpus, change):
    with pytest.raises(ValueError):
        small_config(corpus, **change)


def test_an_unwritable_root_is_a_sentence(corpus, tmp_path):
    write_bytes(tmp_path / "file", b"")
    with pytest.raises(UserError, match=r"paths\.data"):
        small_config(corpus).prepare(tmp_path / "file", Silent())


@pytest.mark.parametrize("name", ["pydocs", "text"])
def test_the_yaml_files_name_every_argument_with_its_default(name):
    node = yaml.safe_load((CHECKOUT / "conf" / "data" / f"{name}.yaml").read_text())
    targets = {"pydocs": PythonDocs, "text": TextFiles}
    for child, made in (
        (node, DataConfig),
        (node["source"], targets[name]),
        (node["tokenizer"], SentencePieceTokenizer),
    ):
        assert child.pop("_target_") == f"{made.__module__}.{made.__qualname__}"
        parameters = inspect.signature(made).parameters
        assert set(child) == set(parameters)
        assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())

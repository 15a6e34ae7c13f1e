"""A tokenizer trained on the small corpus, and a prepared directory."""

import shutil
from pathlib import Path

import pytest

from pgolf.console import Silent
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.tokenizer import SentencePieceTokenizer, Tokenizer

from .corpus import small_config, small_documents, write_corpus


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return SentencePieceTokenizer(vocab_size=400).train(small_documents(60))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("prepared")
    return small_config(write_corpus(folder / "corpus.jsonl")).prepare(folder, Silent())


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    """A prepared directory that the test may damage."""
    return Path(shutil.copytree(prepared.directory, tmp_path / "copy"))

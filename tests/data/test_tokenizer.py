"""Training SentencePiece, and the wrapper."""

import pytest

from pgolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from pgolf.errors import UserError

from .corpus import small_documents


def test_special_ids_and_vocabulary(tokenizer):
    assert [tokenizer.piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert tokenizer.vocab_size == 400
    pieces = [tokenizer.piece(i) for i in range(400)]
    assert "▁" in pieces and "\n" in pieces and "<0xFF>" in pieces
    assert any(piece.strip("▁") == "" and len(piece) > 1 for piece in pieces)  # Indentation.


def test_training_is_deterministic(tokenizer):
    again = SentencePieceTokenizer(vocab_size=400).train(small_documents(60))
    assert again.model == tokenizer.model and again.sha256 == tokenizer.sha256


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("2048")) == 4


def test_batches_equal_single_encodings(tokenizer):
    texts = [*small_documents(5), "", " ", "\n"]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected


def test_long_lines_and_reserved_characters_are_trained_on():
    """A sentence the trainer would drop for its length or for a NUL still contributes pieces."""
    long = "zyxwvut " * 3000 + "\0"
    trained = SentencePieceTokenizer(vocab_size=280, chunk_characters=100).train([long])
    assert len(trained.encode("zyxwvut")) == 1


def test_the_sample_is_bounded():
    maker = SentencePieceTokenizer(vocab_size=300, sample_characters=50, chunk_characters=20)
    chunks = list(maker._chunks(["a" * 45, "b" * 45, "c" * 45]))
    assert chunks == ["a" * 20, "a" * 20, "a" * 5, "b" * 20]


def test_too_little_text_for_the_vocabulary_is_a_sentence():
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab_size=5000.*smaller vocabulary"):
        SentencePieceTokenizer(vocab_size=5000).train(["only this text"])


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab_size": 100},
        {"vocab_size": 65_536},
        {"vocab_size": 1024, "character_coverage": 1.5},
        {"vocab_size": 1024, "chunk_characters": 3},
        {"vocab_size": 1024, "sample_characters": 10},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError):
        SentencePieceTokenizer(**settings)


def test_a_damaged_model_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        Tokenizer(b"not a model")
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path / "none.model")

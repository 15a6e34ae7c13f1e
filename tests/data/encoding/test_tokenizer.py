"""Training SentencePiece, and the wrapper."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pgolf.data.encoding import caseops
from pgolf.data.encoding.normalizer import read_rules
from pgolf.data.encoding.sentencepiece_model import Tokenizer, lossless_model, parse
from pgolf.data.encoding.tokenizer import PublishedSentencePiece, SentencePieceTokenizer, TokenizerFile
from pgolf.errors import UserError
from tests.support import GOLDEN

from ..corpus import small_documents

MODEL = GOLDEN.parent / "fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model"


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
        {"vocab_size": 1024, "normalization": "nfkc"},
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


def capitals_and_spaces() -> list[str]:
    return [" \0The  model,\nread " + text for text in small_documents(60)]


def test_published_training_settings():
    """Field for field what the published model file says about its own training, and its normaliser."""
    if not MODEL.exists():
        pytest.skip(f"needs {MODEL} beside the checkout")
    symbols = caseops.OPERATORS
    config = PublishedSentencePiece(vocab_size=330, normalization="published")
    trained = config.train(map(caseops.encode, capitals_and_spaces()), symbols).proto
    published = Tokenizer.load(MODEL).proto
    of_run = ("model_prefix", "vocab_size", "input", "num_threads", "user_defined_symbols", "minloglevel")
    for field in published.trainer_spec.DESCRIPTOR.fields_by_name:
        if field not in of_run:
            assert getattr(trained.trainer_spec, field) == getattr(published.trainer_spec, field), field
    ours, theirs = trained.normalizer_spec, published.normalizer_spec
    older, newer = (read_rules(spec.precompiled_charsmap) for spec in (theirs, ours))
    assert older.single.items() <= newer.single.items() and older.continuing <= newer.continuing
    ours.ClearField("precompiled_charsmap")  # A later version of the library knows a later version of Unicode.
    theirs.ClearField("precompiled_charsmap")
    assert ours == theirs
    assert [piece.piece for piece in trained.pieces[:264]] == [piece.piece for piece in published.pieces[:264]]


def test_published_training_text_is_stripped_and_nul_is_a_space():
    config = PublishedSentencePiece(vocab_size=330, sample_documents=3)
    assert list(config._sentences(["\0 a\0b \n", " \0", "c", "d"])) == ["a b", "c"]
    lossless = config.train(capitals_and_spaces())
    assert lossless.normalization == "lossless"
    assert lossless.decode(lossless.encode(" \0The  é\n")) == " \0The  é\n"


def test_a_soft_limit_that_is_not_reached_is_a_sentence():
    with pytest.raises(UserError, match=r"vocab_size=4000: these documents give only \d+ pieces"):
        PublishedSentencePiece(vocab_size=4000).train(["only this text", "and this"])


def test_an_existing_file(tokenizer, tmp_path):
    path = tmp_path / "my.model"
    path.write_bytes(tokenizer.model)
    config = TokenizerFile(path=str(path), sha256=tokenizer.sha256.upper())
    assert config.vocab_size == 400 and config.train([]).sha256 == tokenizer.sha256
    assert config.identity() == {"kind": "sentencepiece_file", "sha256": tokenizer.sha256, "normalization": "lossless"}
    with pytest.raises(UserError, match="has the SHA-256 .* expected 00"):
        TokenizerFile(path=str(path), sha256="00")
    with pytest.raises(UserError, match="cannot read .*other"):
        TokenizerFile(path=str(tmp_path / "other.model"))


def test_normalization_is_read_from_the_model():
    published = SentencePieceTokenizer(vocab_size=400, normalization="published").train(small_documents(60))
    assert published.normalization == "published"
    assert published.encode(" ﬃ  \n the ") == published.encode("ffi the")
    edited = Tokenizer(lossless_model(published.model))
    assert edited.normalization == "lossless" and edited.sha256 != published.sha256
    assert edited.decode(edited.encode(" ﬃ  \n the ")) == " ﬃ  \n the "


def without(model: Tokenizer, **changes) -> bytes:
    """The model with its BOS elsewhere, its byte pieces or its lone space taken out."""
    proto = parse(model.model)
    if "bos_id" in changes:
        proto.pieces[1].piece, proto.pieces[2].piece = "</s>", "<s>"
    for piece in proto.pieces:
        if "bytes" in changes and piece.type == piece.BYTE:
            piece.type = piece.NORMAL
        if "space" in changes and piece.piece == "▁":
            piece.piece = "☃☃"
    proto.trainer_spec.byte_fallback = "bytes" not in changes
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("bos_id", "has BOS id 2"), ("bytes", "has no byte pieces"), ("space", "has no piece for a lone space")],
)
def test_models_that_would_miscount_are_refused(tokenizer, fault, sentence):
    with pytest.raises(UserError, match=sentence):
        Tokenizer(without(tokenizer, **{fault: True}), "my.model")


def test_a_lone_word_mark_is_spelled_in_bytes(tokenizer):
    mark = tokenizer.encode("▁")
    assert [tokenizer.piece(token) for token in mark] == ["<0xE2>", "<0x96>", "<0x81>"]
    assert tokenizer.encode("the▁▁model") == [*tokenizer.encode("the"), *mark, *mark, *tokenizer.encode("model")]
    assert tokenizer.decode(tokenizer.encode(" ▁ ▁")) == " ▁ ▁"


def test_the_yaml_files_name_every_argument_and_its_default():
    folder = Path(__file__).parents[3] / "conf" / "data" / "tokenizer"
    own_values = {"sentencepiece": {"vocab_size"}, "file": {"path"}}
    files = sorted(folder.glob("*.yaml"))
    assert len(files) == 5
    for file in files:
        node = yaml.safe_load(file.read_text())
        module, _, name = node.pop("_target_").rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(node) == set(parameters), file.name
        for key in set(node) - own_values.get(file.stem, set()):
            assert node[key] == parameters[key].default, (file.name, key)


def test_the_front_end_loads_without_torch():
    """Worker processes that encode must start quickly."""
    program = "import sys, pgolf.data.encoding.frontend; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

"""Which tokenizer a data set uses: trained with this project's settings, with the published ones, or an existing
model file. Each option is one class with `vocab_size`, `identity()` and `train(texts, symbols)`."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from pgolf.data.encoding.byte_tokenizer import ByteTokenizer
from pgolf.data.encoding.sentencepiece_model import Normalization, Tokenizer, lossless_model
from pgolf.data.sources.documents import WORD_MARK
from pgolf.data.validation import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from pgolf.errors import UserError
from pgolf.files import sha256_bytes

SMALLEST_VOCABULARY = 4 + 256 + 2  # Special ids, byte pieces, a space and a line break.
# The trainer drops whole sentences that hold NUL or one of its own markers.
UNTRAINABLE = frozenset("\0\u2047\u2585")
SPECIAL_IDS: dict[str, Any] = {"pad_id": PAD_ID, "bos_id": BOS_ID, "eos_id": EOS_ID, "unk_id": UNK_ID}


class TokenizerConfig(Protocol):
    """How a data set comes by its tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; known before anything is prepared."""

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the tokenizer, given the training documents."""

    def train(self, texts: Iterable[str], symbols: Sequence[str] = ()) -> Tokenizer | ByteTokenizer:
        """The tokenizer. `texts`: training documents, already transformed; `symbols`: the transform's operators,
        each of which becomes a piece of its own."""


class SentencePieceTokenizer:
    """How to train a byte-fallback BPE tokenizer whose round trip is exact.

    Nothing is normalised, stripped or prefixed, so that decoding gives back every byte; what the
    vocabulary lacks is spelled in UTF-8 bytes. Digits are single tokens.

    Args:
        vocab_size: number of ids, at most 65,535 (shards hold uint16).
        sample_characters: train on about this much text, taken from the front of the training
            split.
        chunk_characters: documents are cut into chunks of this length for training, because the
            trainer drops long sentences; encoding is not affected.
        character_coverage: fraction of the sample's characters that get a piece of their own.
        normalization: "lossless" as described; "published" normalises with nmt_nfkc and strips and collapses
            spaces, in training and in encoding, so that the text cannot be recovered.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 1024,
        sample_characters: int = 4_000_000,
        chunk_characters: int = 2_000,
        character_coverage: float = 0.9995,
        normalization: Normalization = "lossless",
    ):
        check_vocabulary(vocab_size, character_coverage, normalization)
        if chunk_characters < 16 or sample_characters < chunk_characters:
            raise ValueError("chunk_characters must be at least 16 and at most sample_characters")
        self.vocab_size = vocab_size
        self.sample_characters = sample_characters
        self.chunk_characters = chunk_characters
        self.character_coverage = character_coverage
        self.normalization = normalization

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the model, given the training documents."""
        version = sentencepiece.__version__
        return {"kind": "sentencepiece_bpe", "sentencepiece": version} | vars(self)

    def train(self, texts: Iterable[str], symbols: Sequence[str] = ()) -> Tokenizer:
        """Train on the front of `texts`, which must be training documents only.

        One thread, no sampling inside the trainer: the same texts give the same model, byte for
        byte. UserError when the text is too small for the vocabulary.
        """
        lossless = self.normalization == "lossless"
        model = train_sentencepiece(
            self._chunks(texts),
            vocab_size=self.vocab_size,
            character_coverage=self.character_coverage,
            required_chars=WORD_MARK + "\n" if lossless else WORD_MARK,
            max_sentence_length=4 * self.chunk_characters,  # Bytes; a character has at most 4.
            normalization_rule_name="identity" if lossless else "nmt_nfkc",
            remove_extra_whitespaces=not lossless,
            allow_whitespace_only_pieces=lossless,
            user_defined_symbols=list(symbols),
        )
        return Tokenizer(model)

    def _chunks(self, texts: Iterable[str]) -> Iterator[str]:
        left = self.sample_characters
        for text in texts:
            for start in range(0, min(len(text), left), self.chunk_characters):
                chunk = text[start : start + self.chunk_characters]
                if not UNTRAINABLE.isdisjoint(chunk):
                    chunk = "".join(c for c in chunk if c not in UNTRAINABLE)
                if chunk:
                    yield chunk
            left -= len(text)
            if left <= 0:
                return


class PublishedSentencePiece:
    """How the published tokenizers were trained (byte-fallback BPE on normalised text, one document a sentence).

    Coverage 0.999, split digits, nmt_nfkc, no dummy prefix, extra spaces removed, vocab_size a soft limit. Each
    document has NUL replaced by a space and is stripped before training; SentencePiece then leaves out documents of
    more than 4,192 bytes, which its default says and the published model file repeats. (nmt_nfkc follows the Unicode
    version of the installed SentencePiece: 0.2.3 has 159 rules that the published file has not, and all of its others.)

    Args:
        vocab_size: number of ids. The limit is soft: too little text gives fewer, which is refused here because the
            model is built before the data is there.
        normalization: "lossless" (the default) keeps the trained vocabulary and takes the normaliser out of the
            model, so that every byte survives; "published" gives exactly the ids of the published export.
        character_coverage: fraction of the text's characters that get a piece of their own.
        sample_documents: train on this many documents from the front of the training split; null: on all of them,
            as published, for which they must fit into memory.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 8192,
        normalization: Normalization = "lossless",
        character_coverage: float = 0.999,
        sample_documents: int | None = None,
    ):
        check_vocabulary(vocab_size, character_coverage, normalization)
        if sample_documents is not None and sample_documents < 1:
            raise ValueError(f"sample_documents={sample_documents} must be at least 1, or null for all")
        self.vocab_size = vocab_size
        self.normalization = normalization
        self.character_coverage = character_coverage
        self.sample_documents = sample_documents

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the model, given the training documents."""
        version = sentencepiece.__version__
        return {"kind": "sentencepiece_published", "sentencepiece": version} | vars(self)

    def train(self, texts: Iterable[str], symbols: Sequence[str] = ()) -> Tokenizer:
        """Train on `texts`, which must be training documents only; UserError when they are too few."""
        model = train_sentencepiece(
            self._sentences(texts),
            vocab_size=self.vocab_size,
            character_coverage=self.character_coverage,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc",
            user_defined_symbols=list(symbols),
        )
        tokenizer = Tokenizer(lossless_model(model) if self.normalization == "lossless" else model)
        if tokenizer.vocab_size != self.vocab_size:
            raise UserError(
                f"data.tokenizer.vocab_size={self.vocab_size}: these documents give only {tokenizer.vocab_size} "
                "pieces; set the vocabulary to that, or give more text."
            )
        return tokenizer

    def _sentences(self, texts: Iterable[str]) -> Iterator[str]:
        for number, text in enumerate(texts):
            if number == self.sample_documents:
                return
            sentence = text.replace("\0", " ").strip()
            if sentence:
                yield sentence


class TokenizerFile:
    """An existing SentencePiece model.

    Args:
        path: the .model file.
        sha256: refuse the file unless it has this SHA-256; null: take it as it is.
        normalization: "lossless" (the default) takes the normaliser out of the model; "published" encodes exactly as
            SentencePiece does with this file.

    UserError when the file is missing, damaged, not the expected one, or cannot be used (see Tokenizer).
    """

    def __init__(self, *, path: str, sha256: str | None = None, normalization: Normalization = "lossless"):
        check_normalization(normalization)
        model = Tokenizer.load(Path(path)).model
        found = sha256_bytes(model)
        if sha256 is not None and found != sha256.lower():
            raise UserError(f"data.tokenizer.path={path} has the SHA-256 {found}, expected {sha256}.")
        self.normalization = normalization
        self.tokenizer = Tokenizer(lossless_model(model) if normalization == "lossless" else model, path)
        self.sha256 = found
        self.vocab_size = self.tokenizer.vocab_size

    def identity(self) -> dict[str, Any]:
        """The hash of the file and what is done to it."""
        return {"kind": "sentencepiece_file", "sha256": self.sha256, "normalization": self.normalization}

    def train(self, texts: Iterable[str], symbols: Sequence[str] = ()) -> Tokenizer:
        """The tokenizer of the file; nothing is trained, so operators it lacks are spelled in bytes."""
        return self.tokenizer


def train_sentencepiece(sentences: Iterator[str], **settings: Any) -> bytes:
    """Train a byte-fallback BPE model with single digits and the ids of this project; returns the serialised model.

    Args:
        settings: of SentencePiece's trainer; they come before those named here.
    """
    sink = io.BytesIO()
    shared: dict[str, Any] = SPECIAL_IDS | {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "add_dummy_prefix": False,
        "num_threads": 1,  # The same texts then give the same model.
        "minloglevel": 2,
    }
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=sink, **(shared | settings))
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"data.tokenizer.vocab_size={settings['vocab_size']}: SentencePiece could not train on "
            f"these documents; a smaller vocabulary or more text is needed ({error})."
        ) from error
    return sink.getvalue()


def check_vocabulary(vocab_size: int, character_coverage: float, normalization: str) -> None:
    """Refuse settings that no trainer can meet."""
    if not SMALLEST_VOCABULARY <= vocab_size <= 65_535:
        raise ValueError(f"vocab_size={vocab_size} must lie between {SMALLEST_VOCABULARY} and 65535")
    if not 0.9 <= character_coverage <= 1.0:
        raise ValueError(f"character_coverage={character_coverage} must lie between 0.9 and 1")
    check_normalization(normalization)


def check_normalization(normalization: str) -> None:
    """Refuse an unknown normalisation."""
    if normalization not in ("lossless", "published"):
        raise ValueError(f"normalization={normalization!r} must be lossless or published")

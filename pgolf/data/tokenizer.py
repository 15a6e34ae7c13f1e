"""SentencePiece tokenizers: training one, and a wrapper whose round trip is exact."""

import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import sentencepiece

from pgolf.data.documents import WORD_MARK
from pgolf.data.validation import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from pgolf.errors import UserError

SMALLEST_VOCABULARY = 4 + 256 + 2  # Special ids, byte pieces, a space and a line break.
# The trainer drops whole sentences that hold NUL or one of its own markers.
UNTRAINABLE = frozenset("\0\u2047\u2585")


class Tokenizer:
    """A trained SentencePiece model.

    Args:
        model: the serialised model.
        origin: where it came from, for error messages.
    """

    def __init__(self, model: bytes, origin: str = "the tokenizer model"):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{origin} is not a SentencePiece model ({error}).") from error
        if self.processor.bos_id() != BOS_ID:
            raise UserError(
                f"{origin} has BOS id {self.processor.bos_id()}; documents are delimited by id "
                f"{BOS_ID}, so train the tokenizer with bos_id=1."
            )
        self.model = model
        self.vocab_size: int = self.processor.vocab_size()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a model file; UserError when it is missing or damaged."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the serialised model."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        ids: list[int] = self.processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """Token ids of each text, without BOS; the number of threads does not change them."""
        batch: list[list[int]] = self.processor.encode(list(texts), num_threads=num_threads)
        return batch

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special ids decode to nothing."""
        text: str = self.processor.decode([int(token) for token in ids])
        return text

    def piece(self, token: int) -> str:
        """The surface of a token as SentencePiece writes it (a space is U+2581)."""
        surface: str = self.processor.id_to_piece(int(token))
        return surface


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
    """

    def __init__(
        self,
        *,
        vocab_size: int = 1024,
        sample_characters: int = 4_000_000,
        chunk_characters: int = 2_000,
        character_coverage: float = 0.9995,
    ):
        if not SMALLEST_VOCABULARY <= vocab_size <= 65_535:
            raise ValueError(f"vocab_size={vocab_size} must lie between {SMALLEST_VOCABULARY} and 65535")
        if not 0.9 <= character_coverage <= 1.0:
            raise ValueError(f"character_coverage={character_coverage} must lie between 0.9 and 1")
        if chunk_characters < 16 or sample_characters < chunk_characters:
            raise ValueError("chunk_characters must be at least 16 and at most sample_characters")
        self.vocab_size = vocab_size
        self.sample_characters = sample_characters
        self.chunk_characters = chunk_characters
        self.character_coverage = character_coverage

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the model, given the training documents."""
        version = sentencepiece.__version__
        return {"kind": "sentencepiece_bpe", "sentencepiece": version} | vars(self)

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Train on the front of `texts`, which must be training documents only.

        One thread, no sampling inside the trainer: the same texts give the same model, byte for
        byte. UserError when the text is too small for the vocabulary.
        """
        sink = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(self._chunks(texts)),
                model_writer=sink,
                model_type="bpe",
                vocab_size=self.vocab_size,
                character_coverage=self.character_coverage,
                required_chars=WORD_MARK + "\n",
                max_sentence_length=4 * self.chunk_characters,  # Bytes; a character has at most 4.
                byte_fallback=True,
                split_digits=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                pad_id=PAD_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.tokenizer.vocab_size={self.vocab_size}: SentencePiece could not train on "
                f"these documents; a smaller vocabulary or more text is needed ({error})."
            ) from error
        return Tokenizer(sink.getvalue())

    def _chunks(self, texts: Iterable[str]) -> list[str]:
        chunks: list[str] = []
        left = self.sample_characters
        for text in texts:
            for start in range(0, min(len(text), left), self.chunk_characters):
                chunk = text[start : start + self.chunk_characters]
                if not UNTRAINABLE.isdisjoint(chunk):
                    chunk = "".join(c for c in chunk if c not in UNTRAINABLE)
                if chunk:
                    chunks.append(chunk)
            left -= len(text)
            if left <= 0:
                break
        return chunks

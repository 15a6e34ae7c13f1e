"""A trained SentencePiece model, as published or with its normaliser taken out so that nothing is lost."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pgolf.data.sources.documents import WORD_MARK
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError

Normalization = Literal["lossless", "published"]


class Tokenizer:
    """A trained SentencePiece model.

    Its normalisation is read from the model: "lossless" when the model normalises, prefixes, strips and collapses
    nothing, so that ids decode to exactly the text; otherwise "published", which encodes exactly as SentencePiece
    does with that file, and loses what its normaliser changes.

    Literal U+2581: SentencePiece writes a space as this character and cannot tell the two apart. A lossless
    tokenizer therefore cuts the text there and spells the character as its three byte pieces, so that every string
    with a UTF-8 form survives.

    Args:
        model: the serialised model.
        origin: where it came from, for error messages.

    UserError when the file is no model, lacks BOS as id 1, or has no byte pieces or no lone space piece: bits per
    byte would then be wrong (#897, #755).
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, origin: str = "the tokenizer model"):
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{origin} is not a SentencePiece model ({error}).") from error
        self.model, self.origin = model, origin
        self.vocab_size: int = self.processor.vocab_size()
        self._check()

    def _check(self) -> None:
        processor = self.processor
        if processor.bos_id() != BOS_ID:
            raise UserError(
                f"{self.origin} has BOS id {processor.bos_id()}; documents are delimited by id "
                f"{BOS_ID}, so train the tokenizer with bos_id=1."
            )
        if self.vocab_size > 65_536:
            raise UserError(f"{self.origin} has {self.vocab_size} ids; shards hold 16 bits a token, so at most 65536.")
        if not self.proto.trainer_spec.byte_fallback or (self.byte_ids < 0).any():
            raise UserError(
                f"{self.origin} has no byte pieces (byte_fallback), so text outside its vocabulary would be lost and "
                "its bytes with it; train it again with byte_fallback=true."
            )
        mark = processor.piece_to_id(WORD_MARK)
        if processor.id_to_piece(mark) != WORD_MARK or processor.is_control(mark) or processor.is_unused(mark):
            raise UserError(
                f"{self.origin} has no piece for a lone space ({WORD_MARK!r}, U+2581), so spaces would be counted as "
                "three bytes; train it again with U+2581 among its required characters."
            )

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read a model file; UserError when it is missing or damaged."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}.") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.model, self.origin)

    @cached_property
    def proto(self) -> Any:
        """The parsed model (a ModelProto)."""
        return parse(self.model)

    @cached_property
    def normalization(self) -> Normalization:
        """What the model does to a text before it looks for pieces."""
        return normalization(self.proto.normalizer_spec)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the serialised model."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def byte_ids(self) -> npt.NDArray[np.int64]:
        """int64 [256]; the id of each byte's piece, -1 where there is none."""
        ids = np.full(256, -1, np.int64)
        for token, piece in enumerate(self.proto.pieces):
            if piece.type == piece.BYTE:
                ids[int(piece.piece[1:-1], 16)] = token
        return ids

    @cached_property
    def piece_bytes(self) -> list[bytes]:
        """What each id stands for in UTF-8: a byte piece for its byte, a control id for nothing, `<unk>` for what
        SentencePiece prints for it. A space is one byte."""
        surfaces: list[bytes] = []
        for piece in self.proto.pieces:
            if piece.type == piece.BYTE:
                surfaces.append(bytes([int(piece.piece[1:-1], 16)]))
            elif piece.type == piece.CONTROL:
                surfaces.append(b"")
            elif piece.type == piece.UNKNOWN:
                surfaces.append(self.proto.trainer_spec.unk_surface.encode())
            else:
                surfaces.append(piece.piece.replace(WORD_MARK, " ").encode())
        return surfaces

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS. ValueError for a lone surrogate, which has no UTF-8 form."""
        try:
            batch: list[list[int]] = self.processor.encode(list(texts), num_threads=1)
        except (UnicodeEncodeError, TypeError):  # SentencePiece says either, and neither says where.
            refuse_surrogates(texts)
            raise
        if self.normalization == "lossless":
            for index, text in enumerate(texts):
                if WORD_MARK in text:
                    batch[index] = self._encode_marks(text)
        return batch

    def _encode_marks(self, text: str) -> list[int]:
        """Token ids of a text with literal U+2581, each of which is spelled in bytes."""
        mark = self.byte_ids[list(WORD_MARK.encode())].tolist()
        parts: list[list[int]] = self.processor.encode(text.split(WORD_MARK), num_threads=1)
        return [token for part in parts for token in mark + part][len(mark) :]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text of `ids`; control ids decode to nothing, bytes that are no UTF-8 to U+FFFD."""
        if self.normalization == "published":
            text: str = self.processor.decode([int(token) for token in ids])
            return text
        return b"".join([self.piece_bytes[token] for token in ids]).decode(errors="replace")

    def piece(self, token: int) -> str:
        """The surface of a token as SentencePiece writes it (a space is U+2581)."""
        surface: str = self.processor.id_to_piece(int(token))
        return surface


def refuse_surrogates(texts: Sequence[str]) -> None:
    """ValueError when a text holds a lone surrogate, which has no UTF-8 form."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} is a lone surrogate, which has no UTF-8 form; leave the document out."
            ) from error


def parse(model: bytes) -> Any:
    """The ModelProto of a serialised model."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made when it is imported
    proto.ParseFromString(model)
    return proto


def normalization(spec: Any) -> Normalization:
    """What a model with this NormalizerSpec does to a text."""
    changes = spec.precompiled_charsmap or spec.add_dummy_prefix or spec.remove_extra_whitespaces
    return "lossless" if not changes and spec.escape_whitespaces else "published"


def lossless_model(model: bytes) -> bytes:
    """The same vocabulary without a normaliser: nothing is mapped, prefixed, stripped or collapsed.

    SentencePiece has no call for it, so the model itself is edited. A model that is lossless already is given back.
    """
    proto = parse(model)
    spec = proto.normalizer_spec
    if normalization(spec) == "lossless":
        return model
    spec.name = "identity"
    spec.precompiled_charsmap = b""
    spec.normalization_rule_tsv = ""
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = False
    spec.escape_whitespaces = True
    proto.ClearField("denormalizer_spec")
    edited: bytes = proto.SerializeToString(deterministic=True)
    return edited

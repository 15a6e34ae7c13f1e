"""How many bytes of original text each token stands for: the denominator of bits per byte.

The published rule (a table per id, and one more byte for a word mark unless the previous token is a
boundary) was written for models that put a dummy space before the text and strip repeated spaces.
Two refinements make it exact for models that do neither, and change nothing for those that do:

* A word mark right after a boundary is a real space unless the model invents one there, so it
  counts one byte in models without a dummy prefix.
* A word mark inside a piece ("▁▁▁", "a▁b") is a space: one byte, not the three of U+2581.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pgolf.data.documents import WORD_MARK
from pgolf.data.sentencepiece_model import Tokenizer
from pgolf.errors import UserError

Kind = Literal["normal", "byte", "boundary"]


@dataclass(frozen=True)
class ByteTable:
    """Bytes per id.

    Attributes:
        base_bytes: int32 [vocab]; bytes of the piece without its leading word mark.
        leading_space: bool [vocab]; the piece begins with a word mark.
        is_boundary: bool [vocab]; control, unknown and unused ids. They cost nothing.
        space_after_boundary: a leading word mark counts after a boundary too.
    """

    base_bytes: npt.NDArray[np.int32]
    leading_space: npt.NDArray[np.bool_]
    is_boundary: npt.NDArray[np.bool_]
    space_after_boundary: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "ByteTable":
        """The table of a SentencePiece model."""
        processor = tokenizer.processor
        pieces: list[tuple[str, Kind]] = []
        for token in range(tokenizer.vocab_size):
            kind: Kind = "normal"
            if processor.is_byte(token):
                kind = "byte"
            elif processor.is_control(token) or processor.is_unknown(token) or processor.is_unused(token):
                kind = "boundary"
            pieces.append((tokenizer.piece(token), kind))
        # What the model does to text is asked of the model: its settings need a protobuf parser.
        dummy_prefix = processor.normalize("a").startswith(WORD_MARK)
        return cls.from_pieces(pieces, dummy_prefix)

    @classmethod
    def from_pieces(cls, pieces: Iterable[tuple[str, Kind]], dummy_prefix: bool) -> "ByteTable":
        """The table of (surface, kind) pairs in id order.

        UserError when no normal piece is a lone word mark: the encoder would then spell a space as
        the three UTF-8 bytes of U+2581, and a model would be credited with bytes that are not in
        the text.
        """
        pieces = list(pieces)
        if (WORD_MARK, "normal") not in pieces:
            raise UserError(
                f"the tokenizer has no piece for a lone space ({WORD_MARK!r}, U+2581), so spaces "
                "would be counted as three bytes; train it again with U+2581 among its required "
                "characters."
            )
        base_bytes = np.zeros(len(pieces), np.int32)
        leading_space = np.zeros(len(pieces), np.bool_)
        is_boundary = np.array([kind == "boundary" for _, kind in pieces], np.bool_)
        for token, (surface, kind) in enumerate(pieces):
            if kind == "byte":
                base_bytes[token] = 1
            elif kind == "normal":
                leading_space[token] = surface.startswith(WORD_MARK)
                rest = surface.removeprefix(WORD_MARK).replace(WORD_MARK, " ")
                base_bytes[token] = len(rest.encode())
        return cls(base_bytes, leading_space, is_boundary, not dummy_prefix)

    def token_bytes(self, previous: npt.NDArray[np.integer], current: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Bytes of original text of each token of `current`, after `previous` (same shape)."""
        counts_space = self.leading_space[current]
        if not self.space_after_boundary:
            counts_space = counts_space & ~self.is_boundary[previous]
        return self.base_bytes[current] + counts_space.astype(np.int32)

    def stream_bytes(self, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Bytes of each token of a stream that begins with BOS (which stands for no byte)."""
        counted = np.zeros(len(tokens), np.int32)
        counted[1:] = self.token_bytes(tokens[:-1], tokens[1:])
        return counted


def check_document_bytes(name: str, recorded: int, decoded: int, charged: int) -> None:
    """Refuse a document whose three byte counts differ.

    Args:
        recorded: UTF-8 length when the text was gathered.
        decoded: UTF-8 length of the text that the stored tokens decode to.
        charged: sum over the tokens of what bits per byte would be divided by.
    """
    if decoded != recorded:
        raise UserError(
            f"document {name!r}: its tokens decode to {decoded} bytes of UTF-8 but the original "
            f"has {recorded}; the tokenizer does not round-trip this text."
        )
    if charged != recorded:
        raise UserError(
            f"document {name!r}: its tokens are charged {charged} bytes but the original has "
            f"{recorded}; bits per byte would be wrong by that ratio."
        )

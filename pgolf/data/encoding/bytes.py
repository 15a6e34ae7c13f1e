"""How many bytes of original text each token stands for: the denominator of bits per byte.

Two rules, and a second path for each:

* By surfaces, for every tokenizer and transform (the sidecar of #1851, #1855 and #1868): each character of the text
  that was tokenised costs its UTF-8 length, a transform's operator nothing unless it is escaped; a token costs the
  characters of its surface. A character that is spelled in several byte pieces is charged to the last of them.
  `charge` computes it where the text is at hand, `SurfaceWalk` from the ids alone.
* By a table per id (ByteTable), for SentencePiece without a transform.

Two things are not reproduced. The sidecar scripts shipped with #1736, #1769 and #1787 advance a cursor by the printed
length of each piece ("<0xE2>" has six characters, a byte one) and so charge the wrong characters, operators among
them; the published scores never used that output. And published surfaces leave out the whitespace that the normaliser
strips from both ends of a document: here it is charged to the first and the last token, so that the bytes of every
document sum to its UTF-8 length (`charge(..., whole=False)` gives the bare rule).

The published table rule (a table per id, and one more byte for a word mark unless the previous token is a
boundary) was written for models that put a dummy space before the text and strip repeated spaces.
Two refinements make it exact for models that do neither, and change nothing for those that do:

* A word mark right after a boundary is a real space unless the model invents one there, so it
  counts one byte in models without a dummy prefix.
* A word mark inside a piece ("▁▁▁", "a▁b") is a space: one byte, not the three of U+2581.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.sentencepiece_model import Tokenizer, refuse_surrogates
from pgolf.data.sources.documents import WORD_MARK
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


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """uint32 [characters]; ValueError for a lone surrogate, which has no UTF-8 form."""
    try:
        return np.frombuffer(text.encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError:
        refuse_surrogates([text])
        raise


def character_costs(text: str, operators: Sequence[str] = ()) -> npt.NDArray[np.int64]:
    """int64 [characters]; bytes of original text that each character of a transformed text stands for.

    Its UTF-8 length, but 0 for an operator, unless the last of the operators (the escape) stands before it.
    """
    codes = code_points(text)
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    if not operators:
        return lengths
    costs = np.where(np.isin(codes, [ord(operator) for operator in operators]), 0, lengths)
    if operators[-1] in text:
        escaped = [match.end() - 1 for match in re.finditer(f"(?s){re.escape(operators[-1])}.", text)]
        costs[escaped] = lengths[escaped]
    return costs


def charge(
    ids: npt.NDArray[np.integer],
    piece_sizes: npt.NDArray[np.int64],
    costs: npt.NDArray[np.int64],
    form: str,
    offsets: npt.NDArray[np.int64] | None = None,
    *,
    whole: bool = True,
) -> npt.NDArray[np.int64]:
    """Bytes of original text of each token (int64 [n]), by surfaces.

    Args:
        ids: [n]; the tokens of `form`.
        piece_sizes: int64 [vocab]; UTF-8 bytes of `form` that each id spells.
        costs: int64 [characters]; bytes that each character of the tokenised text stands for.
        form: the normal form of that text, which is what the pieces spell.
        offsets: int64 [len(form) + 1]; where in the text each character of `form` begins; None: they are the same.
        whole: charge what lies before the first surface to the first token, and what lies after the last to the last.
    """
    spelled = np.frombuffer(form.encode(), np.uint8)
    last_of_character = np.append((spelled[1:] & 0xC0) != 0x80, True)
    complete = np.concatenate([[0], np.cumsum(last_of_character)])[: len(spelled) + 1]
    ends = complete[np.cumsum(piece_sizes[ids])]
    spent = np.concatenate([[0], np.cumsum(costs)])
    first = 0 if whole or offsets is None else int(offsets[0])
    if offsets is not None:
        ends = offsets[ends]
    if whole:
        ends[-1:] = len(costs)
    return np.diff(spent[ends], prepend=spent[first])


class SurfaceWalk:
    """Bytes of original text of each token, from the ids of a lossless front end alone.

    A state machine over surfaces: it remembers an unfinished character and an escape. An id without a surface (a
    control id) costs nothing and ends the document.

    Args:
        surfaces: UTF-8 of each id; a byte piece is one byte.
        operators: the transform's operators, the escape last.
    """

    def __init__(self, surfaces: Sequence[bytes], operators: Sequence[str] = ()):
        self.surfaces = surfaces
        self.marks = [operator.encode() for operator in operators]
        self.plain = list(map(self._plain_size, surfaces))

    def _plain_size(self, surface: bytes) -> int | None:
        """Bytes of a surface whose cost depends on nothing before it; None: it has to be walked."""
        part_of_character = len(surface) == 1 and surface[0] >= 0x80
        return None if part_of_character or any(mark in surface for mark in self.marks) else len(surface)

    def count(self, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.uint16]:
        """uint16 [n] for ids [n]."""
        counts = np.zeros(len(ids), np.uint16)
        unfinished, escaped = b"", False
        for index, token in enumerate(ids.tolist()):
            size = self.plain[token]
            if size is not None and not (unfinished or escaped):
                counts[index] = size
            elif not self.surfaces[token]:
                unfinished, escaped = b"", False
            else:
                counts[index], unfinished, escaped = self._step(self.surfaces[token], unfinished, escaped)
        return counts

    def _step(self, surface: bytes, unfinished: bytes, escaped: bool) -> tuple[int, bytes, bool]:
        """(bytes of the characters that end in `surface`, the unfinished character, whether the next is escaped)."""
        total = 0
        for value in surface:
            unfinished += bytes([value])
            if len(unfinished) < 1 + (unfinished[0] >= 0xC0) + (unfinished[0] >= 0xE0) + (unfinished[0] >= 0xF0):
                continue
            if escaped or unfinished not in self.marks:
                total, escaped = total + len(unfinished), False
            else:
                escaped = unfinished == self.marks[-1]
            unfinished = b""
        return total, unfinished, escaped

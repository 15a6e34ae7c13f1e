"""Every byte of UTF-8 is a token: four special ids, then the 256 bytes (the published `byte260` variant)."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.sentencepiece_model import refuse_surrogates

OFFSET = 4  # The id of byte 0; ids 0-3 are pad, BOS, EOS and unknown.
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


class ByteTokenizer:
    """Token ids are bytes plus 4. It has no model file: its 260 ids are always the same."""

    kind = "bytes"
    normalization = "lossless"
    vocab_size = OFFSET + 256
    sha256 = hashlib.sha256(b"bytes, offset 4, specials pad bos eos unk").hexdigest()
    piece_bytes = [b""] * OFFSET + [bytes([value]) for value in range(256)]

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS. ValueError for a lone surrogate, which has no UTF-8 form."""
        refuse_surrogates([text])
        return [value + OFFSET for value in text.encode()]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text of `ids`; special ids decode to nothing, bytes that are no UTF-8 to U+FFFD."""
        return bytes(int(token) - OFFSET for token in ids if token >= OFFSET).decode(errors="replace")

    def count_bytes(self, ids: npt.NDArray[np.integer], operators: Sequence[str] = ()) -> npt.NDArray[np.uint16]:
        """Bytes of original text of each token (uint16 [n]): 1, but 0 for a special id and for the bytes of operators.

        The last of the operators is the escape: the character after it counts in full.
        """
        counts = (ids >= OFFSET).astype(np.uint16)
        if operators:
            character = b"(?:[\x00-\x7f]|[\xc0-\xff][\x80-\xbf]*)"
            marks = b"|".join(operator.encode() for operator in operators[:-1])
            spelled = np.where(ids >= OFFSET, ids - OFFSET, 0).astype(np.uint8).tobytes()
            escape = operators[-1].encode()
            for match in re.finditer(b"(?s)(" + escape + b")" + character + b"|" + marks, spelled):
                counts[match.start() : match.end(1) if match[1] else match.end()] = 0
        return counts

    def piece(self, token: int) -> str:
        """A token in print: `<0x41>` for the byte 0x41."""
        return SPECIAL[token] if token < OFFSET else f"<0x{token - OFFSET:02X}>"


class Bytes:
    """The option `tokenizer: bytes`. Nothing is trained."""

    vocab_size = ByteTokenizer.vocab_size

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the tokenizer."""
        return {"kind": "bytes", "vocab_size": self.vocab_size}

    def train(self, texts: Iterable[str], symbols: Sequence[str] = ()) -> ByteTokenizer:
        """The byte tokenizer; it needs no text, and operators are spelled in their bytes."""
        return ByteTokenizer()

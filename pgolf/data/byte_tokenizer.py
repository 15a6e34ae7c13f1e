"""Every byte of UTF-8 is a token: four special ids, then the 256 bytes (the published `byte260` variant)."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
        """Token ids of `text`, without BOS."""
        return [value + OFFSET for value in text.encode()]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text of `ids`; special ids decode to nothing, bytes that are no UTF-8 to U+FFFD."""
        return bytes(int(token) - OFFSET for token in ids if token >= OFFSET).decode(errors="replace")

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

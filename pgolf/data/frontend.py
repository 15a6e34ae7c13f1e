"""The text front end: what turns a document into token ids with their bytes of original text, and back."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pgolf.data.byte_tokenizer import ByteTokenizer
from pgolf.data.caseops import ESC
from pgolf.data.sentencepiece_model import Tokenizer
from pgolf.data.tokenizer import TokenizerConfig
from pgolf.data.transform import Transform, load_transform
from pgolf.errors import UserError
from pgolf.files import write_bytes

MODEL_FILE = "tokenizer.model"
Malformed = Literal["refuse", "keep"]


class Encoded(NamedTuple):
    """Encoded documents, one after another, without BOS.

    Attributes:
        ids: uint16 [n].
        token_bytes: uint16 [n]; bytes of original text each token stands for. They sum to the UTF-8 length of each
            document that has a token.
        lengths: int64 [documents]; tokens of each document. A document that the published normalisation empties has
            length 0: it cannot be charged to any token and must be left out.
    """

    ids: npt.NDArray[np.uint16]
    token_bytes: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.int64]


class FrontEnd:
    """A transform (or none) and a tokenizer.

    Attributes:
        vocab_size: number of ids.
        lossless: decode(encode(text)) == text for every text that has a UTF-8 form.
    """

    def __init__(self, transform: Transform | None, tokenizer: Tokenizer | ByteTokenizer):
        self.transform, self.tokenizer = transform, tokenizer
        self.vocab_size: int = tokenizer.vocab_size
        self.lossless: bool = tokenizer.normalization == "lossless"

    def __reduce__(self) -> tuple[Any, ...]:
        return FrontEnd, (self.transform, self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS. ValueError for a lone surrogate, which has no UTF-8 form."""
        return self.tokenizer.encode(text if self.transform is None else self.transform.encode(text))

    def encode_documents(self, texts: Sequence[str]) -> Encoded:
        """Encode many documents. ValueError for a lone surrogate; UserError when a token would stand for more than
        65,535 bytes."""
        parts = [self._encode_one(text) for text in texts]
        counts = [count for part in parts for count in part[1]]
        if max(counts, default=0) > 65_535:
            raise UserError(f"a token stands for {max(counts)} bytes of text; a byte sidecar holds at most 65535.")
        ids = [token for part in parts for token in part[0]]
        lengths = [len(part[0]) for part in parts]
        return Encoded(np.array(ids, np.uint16), np.array(counts, np.uint16), np.array(lengths, np.int64))

    def _encode_one(self, text: str) -> tuple[list[int], list[int]]:
        ids = self.encode(text)
        counts = self.count_bytes(np.array(ids, np.uint16)).tolist() if ids else []
        return ids, counts

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer], *, malformed: Malformed = "refuse") -> str:
        """The text of `ids`; control ids decode to nothing.

        Args:
            malformed: "refuse" raises CaseOpsError where an operator does not parse; "keep" leaves such operators
                visible, for what a model wrote.
        """
        text = self.tokenizer.decode(ids)
        return text if self.transform is None else self.transform.decode(text, malformed=malformed)

    def decode_documents(self, ids: npt.NDArray[np.uint16], lengths: npt.NDArray[np.int64]) -> list[str]:
        """The text of each document; `ids` and `lengths` as in Encoded."""
        ends = np.cumsum(lengths)
        return [self.decode(ids[end - length : end]) for end, length in zip(ends, lengths, strict=True)]

    def count_bytes(self, ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Bytes of original text of each token, from the ids alone, by another path than `encode_documents`.

        A walk over the characters of the surfaces (see pgolf.data.bytes). A control id costs nothing and ends the
        document. ValueError when the front end is not lossless: surfaces are then not in the ids.
        """
        if not self.lossless:
            raise ValueError("surfaces cannot be told from ids: the tokenizer normalises text")
        counts = np.zeros(len(ids), np.uint16)
        escaped, left, character = False, 0, b""
        for index, token in enumerate(ids.tolist()):
            for value in self.tokenizer.piece_bytes[token]:
                character += bytes([value])
                left = left - 1 if left else (value >= 0xC0) + (value >= 0xE0) + (value >= 0xF0)
                if not left:
                    operator = (
                        self.transform is not None and character.decode(errors="replace") in self.transform.operators
                    )
                    counts[index] += 0 if operator and not escaped else len(character)
                    escaped = operator and not escaped and character == ESC.encode()
                    character = b""
        return counts

    def piece(self, token: int) -> str:
        """A token in print."""
        return self.tokenizer.piece(token)

    def description(self) -> dict[str, Any]:
        """JSON values for the manifest; `load` checks and uses them."""
        return {
            "transform": None if self.transform is None else self.transform.identity(),
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "sha256": self.tokenizer.sha256,
                "vocab_size": self.vocab_size,
                "normalization": self.tokenizer.normalization,
            },
        }

    def save(self, directory: Path) -> None:
        """Write tokenizer.model into `directory`, where the tokenizer has a model."""
        if isinstance(self.tokenizer, Tokenizer):
            write_bytes(directory / MODEL_FILE, self.tokenizer.model)

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "FrontEnd":
        """The front end that `save` and `description` wrote; UserError when the file is not the described one."""
        transform = load_transform(description["transform"])
        expected = description["tokenizer"]
        if expected["kind"] not in (ByteTokenizer.kind, Tokenizer.kind):
            raise UserError(f"{directory} names the tokenizer kind {expected['kind']!r}, which pgolf does not know.")
        of_bytes = expected["kind"] == ByteTokenizer.kind
        front_end = cls(transform, ByteTokenizer() if of_bytes else Tokenizer.load(directory / MODEL_FILE))
        found = front_end.description()["tokenizer"]
        for key, value in expected.items():
            if found.get(key) != value:
                where = directory if of_bytes else directory / MODEL_FILE
                raise UserError(
                    f"{where} is not the tokenizer of the manifest: {key} is {found.get(key)}, not {value}."
                )
        return front_end


def train_front_end(transform: Transform | None, tokenizer: TokenizerConfig, texts: Iterable[str]) -> FrontEnd:
    """Train the tokenizer on transformed `texts` (original training documents, read once)."""
    if transform is None:
        return FrontEnd(None, tokenizer.train(texts))
    return FrontEnd(transform, tokenizer.train(map(transform.encode, texts), transform.operators))

"""What the stored tokens of a range of documents really say, against everything that is recorded about them.

The texts are decoded from the tokens, so nothing here trusts the index; the index is compared with what is found.
"""

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pgolf.data.dataset import table_bytes
from pgolf.data.encoding.bytes import ByteTable
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.operators import OperatorTokens
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.index import DocumentIndex, Rows
from pgolf.data.shards import Tokens, TokenStream
from pgolf.errors import UserError

CAPITAL = re.compile(b"[A-Z]")
TEXTS, ENCODING, SIDECAR, TABLE = "texts", "encoding", "byte sidecar", "byte table"


class Part(NamedTuple):
    """Documents `first` to `last` (excluded) of a split."""

    split: str
    first: int
    last: int


class Found(NamedTuple):
    """What a part of the data really holds.

    Attributes:
        problems: the first fault for each check, as a sentence.
        digests: 32 bytes a document: SHA-256 of the decoded text, or of the ids where texts were normalised.
        decoded_bytes: UTF-8 length of all decoded texts.
        charged_bytes: sum of the bytes of the tokens as a score would use them; 0 for training documents.
        operators: tokens that are operators of a text transform, or spell one in bytes.
        has_capitals: whether a decoded text has an ASCII capital, which the transform would write with an operator.
    """

    problems: dict[str, str]
    digests: list[bytes]
    decoded_bytes: int
    charged_bytes: int
    operators: int
    has_capitals: bool


class Inspector:
    """Looks at parts of a prepared directory. It can be sent to other processes; UserError as FrontEnd.load."""

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory, self.manifest = directory, manifest
        self.front_end = FrontEnd.load(directory, manifest["front_end"])

    def __reduce__(self) -> tuple[Any, ...]:
        return Inspector, (self.directory, self.manifest)

    @cached_property
    def indexes(self) -> dict[str, DocumentIndex]:
        """The document index of each split."""
        return {split: DocumentIndex(self.directory, split) for split in self.manifest["splits"]}

    @cached_property
    def streams(self) -> dict[str, TokenStream]:
        """The tokens of each split, and the byte counts of the validation tokens ("val_bytes") where there are any."""
        files = {split: totals["files"] for split, totals in self.manifest["splits"].items()}
        if self.manifest["byte_files"]:
            files["val_bytes"] = self.manifest["byte_files"]
        return {name: TokenStream([self.directory / one for one in listed]) for name, listed in files.items()}

    @cached_property
    def table(self) -> ByteTable | None:
        """The table of bytes per id; None where it does not apply."""
        tokenizer = self.front_end.tokenizer
        if isinstance(tokenizer, Tokenizer) and self.front_end.transform is None:
            return ByteTable.of(tokenizer)
        return None

    @cached_property
    def operators(self) -> OperatorTokens:
        """Tells the operators of a known transform among the tokens."""
        return OperatorTokens(self.front_end)

    def look(self, part: Part) -> Found:
        """Decode the documents of a part and compare."""
        index = self.indexes[part.split]
        starts = index.starts[part.first : part.last + 1]
        stream = self.streams[part.split].read(int(starts[0]), int(starts[-1]))
        rows = index.rows[part.first : part.last]
        local = starts - starts[0]
        lengths = np.diff(local) - 1
        ids = np.delete(stream, local[:-1])
        problems: dict[str, str] = {}
        texts = self._decode(ids, lengths, part, problems)
        sizes = np.array([len(text) for text in texts], np.int64)
        digests = _digests(texts) if self.front_end.lossless else _digests(_slices(ids, lengths))
        if self.front_end.lossless and not problems:
            self._compare(texts, sizes, digests, rows, part, problems)
            self._encode_again(texts, ids, lengths, part, problems)
        charged = self._charge(stream, local, sizes, rows, part, problems)
        operators = int(self.operators.mask(stream).sum())
        has_capitals = any(map(CAPITAL.search, texts))
        return Found(problems, digests, int(sizes.sum()), charged, operators, has_capitals)

    def _name(self, part: Part, offset: int) -> str:
        return f"{part.split} document {self.indexes[part.split].name(part.first + offset)!r}"

    def _decode(self, ids: Tokens, lengths: np.ndarray, part: Part, problems: dict[str, str]) -> list[bytes]:
        """The texts in UTF-8; what cannot be decoded is a problem and an empty text."""
        try:
            return [text.encode() for text in self.front_end.decode_documents(ids, lengths)]
        except UserError:
            texts = []
            for offset, one in enumerate(_slices(ids, lengths)):
                try:
                    texts.append(self.front_end.decode(np.frombuffer(one, np.uint16)).encode())
                except UserError as error:
                    problems.setdefault(TEXTS, f"{self._name(part, offset)} cannot be decoded: {error}")
                    texts.append(b"")
            return texts

    def _compare(
        self,
        texts: list[bytes],
        sizes: np.ndarray,
        digests: list[bytes],
        rows: Rows,
        part: Part,
        problems: dict[str, str],
    ) -> None:
        for offset in np.flatnonzero(sizes != rows["bytes"]).tolist():
            problems[TEXTS] = (
                f"{self._name(part, offset)} decodes to {sizes[offset]} bytes, the index says {rows['bytes'][offset]}."
            )
            return
        for offset, digest in enumerate(digests):
            if digest != rows["sha256"][offset].tobytes():
                problems[TEXTS] = (
                    f"{self._name(part, offset)} does not decode to the text whose SHA-256 is in the index."
                )
                return

    def _encode_again(
        self, texts: list[bytes], ids: Tokens, lengths: np.ndarray, part: Part, problems: dict[str, str]
    ) -> None:
        """The tokens must be those that the front end makes of the text: others would be another data set."""
        again = self.front_end.encode_documents([text.decode() for text in texts])
        if np.array_equal(again.lengths, lengths) and np.array_equal(again.ids, ids):
            return
        pairs = zip(_slices(again.ids, again.lengths), _slices(ids, lengths), strict=True)
        offset = next(at for at, (here, there) in enumerate(pairs) if here != there)
        problems[ENCODING] = f"{self._name(part, offset)} is not stored as the tokens that its front end makes of it."

    def _charge(
        self, stream: Tokens, starts: np.ndarray, sizes: np.ndarray, rows: Rows, part: Part, problems: dict[str, str]
    ) -> int:
        """Compare the bytes of the tokens by every path; the sum that a score would divide by (validation only)."""
        expected = sizes if self.front_end.lossless else rows["bytes"]
        if self.table is not None and self.front_end.lossless:
            self._same(
                TABLE, "by the table of bytes per id", self.table.stream_bytes(stream), starts, expected, part, problems
            )
        if part.split != "val":
            return 0
        if "val_bytes" not in self.streams:
            try:
                charged = table_bytes(self.front_end, stream).astype(np.int64)
            except UserError as error:
                problems[SIDECAR] = str(error)
                return 0
        else:
            begin = int(self.indexes["val"].starts[part.first])
            charged = self.streams["val_bytes"].read(begin, begin + len(stream)).astype(np.int64)
            if len(charged) != len(stream):
                problems[SIDECAR] = (
                    f"{len(self.streams['val'])} validation tokens have {len(self.streams['val_bytes'])} byte counts."
                )
                return 0
            if self.front_end.lossless:
                self._same_tokens(charged, stream, begin, problems)
            elif charged[starts[:-1]].any():
                problems.setdefault(SIDECAR, "a BOS of the validation split is charged bytes; it stands for none.")
        self._same(SIDECAR, "in the sidecar", charged, starts, expected, part, problems)
        return int(charged.sum())

    def _same_tokens(self, stored: np.ndarray, stream: Tokens, begin: int, problems: dict[str, str]) -> None:
        counted = self.front_end.count_bytes(stream)
        for at in np.flatnonzero(counted != stored).tolist():
            problems.setdefault(
                SIDECAR,
                f"validation token {begin + at} stands for {counted[at]} bytes, the sidecar says {stored[at]}.",
            )
            return

    def _same(
        self,
        check: str,
        where: str,
        token_bytes: np.ndarray,
        starts: np.ndarray,
        expected: np.ndarray,
        part: Part,
        problems: dict[str, str],
    ) -> None:
        sums = np.add.reduceat(token_bytes.astype(np.int64), starts[:-1])
        for offset in np.flatnonzero(sums != expected).tolist():
            problems.setdefault(
                check, f"{self._name(part, offset)} has {expected[offset]} bytes, {sums[offset]} {where}."
            )
            return


def look(inspector: Inspector, part: Part) -> Found:
    """`Inspector.look`, to be sent to another process."""
    return inspector.look(part)


def _digests(parts: list[bytes]) -> list[bytes]:
    return [hashlib.sha256(part).digest() for part in parts]


def _slices(ids: Tokens, lengths: np.ndarray) -> list[bytes]:
    ends = np.cumsum(lengths)
    return [ids[end - length : end].tobytes() for end, length in zip(ends, lengths, strict=True)]

"""The prepared data set, as runs and tools read it."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pgolf.console import Silent
from pgolf.data.encoding.bytes import ByteTable
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.index import DocumentIndex
from pgolf.data.manifest import check_agreement, check_sizes, check_tokenizer, hash_files, read_manifest
from pgolf.data.shards import Tokens, iterate_documents, read_shard
from pgolf.data.validation import BOS_ID, ValidationSet
from pgolf.data.verification.samples import check_samples
from pgolf.errors import UserError

SAMPLED_TOKENS = 2**16  # Validation tokens whose bytes are counted again at every start, from the ids alone.


class Dataset:
    """A prepared directory. Opening it makes the cheap checks: manifest, sizes, headers, tokenizer hash, samples of the
    training shards."""

    bos_id = BOS_ID

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: dict[str, Any] = read_manifest(directory)
        check_agreement(directory, self.manifest)
        check_sizes(directory, self.manifest)
        check_tokenizer(directory, self.manifest)
        check_samples(directory, self.manifest)
        self.digest: str = self.manifest["digest"]
        self.vocab_size: int = self.manifest["vocab_size"]
        self.train_files = self.files("train")

    def refuse(self, differences: list[str]) -> None:
        """UserError when a configuration asks for other data (see Data.differences)."""
        if differences:
            raise UserError(
                f"{self.directory} holds other data than the configuration asks for: {'. '.join(differences)}. Prepare "
                "the data of this configuration, or set it to what was prepared."
            )

    def files(self, split: str) -> list[Path]:
        """The token shards of "train" or "val", in order."""
        return [self.directory / name for name in self.manifest["splits"][split]["files"]]

    def index(self, split: str) -> DocumentIndex:
        """The documents of "train" or "val"."""
        return DocumentIndex(self.directory, split)

    @cached_property
    def front_end(self) -> FrontEnd:
        """The transform and tokenizer that the shards were written with."""
        return FrontEnd.load(self.directory, self.manifest["front_end"])

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return self.front_end.encode(text)

    def decode(self, ids: Sequence[int], *, malformed: Literal["refuse", "keep"] = "refuse") -> str:
        """The text of `ids`; `malformed` as in FrontEnd.decode ("keep" for what a model wrote)."""
        return self.front_end.decode(ids, malformed=malformed)

    def validation(self) -> ValidationSet:
        """Read the whole validation split. UserError when a file is not the one of the manifest, or when its parts do
        not belong together."""
        names = self.manifest["splits"]["val"]["files"] + self.manifest["byte_files"]
        for name, digest in hash_files(self.directory, names, Silent()).items():
            if digest != self.manifest["files"][name]["sha256"]:
                raise UserError(
                    f"{self.directory / name} does not have the SHA-256 of its manifest: validation would be of other "
                    "text, or charged other bytes. Put the right file back, or delete the directory and make it again."
                )
        index = self.index("val")
        tokens = np.concatenate([read_shard(path) for path in self.files("val")])
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise UserError(
                f"the validation shards of {self.directory} hold the id {tokens.max()}, the vocabulary ends at "
                f"{self.vocab_size}: delete the directory and make it again."
            )
        starts = np.flatnonzero(tokens == self.bos_id).astype(np.int64)
        token_bytes = self._token_bytes(tokens)
        if len(tokens) != len(token_bytes) or not np.array_equal(starts, index.starts[:-1]):
            raise UserError(
                f"the validation split of {self.directory} is inconsistent: {len(tokens)} tokens with "
                f"{len(token_bytes)} byte counts, {len(starts)} BOS for {len(index)} documents (or not where they "
                "begin); delete it and prepare it again."
            )
        document_bytes = index.rows["bytes"].astype(np.int64)
        self._check_bytes(tokens, token_bytes, starts, document_bytes)
        return ValidationSet(tokens, token_bytes, starts, document_bytes, list(index.names()))

    def _check_bytes(
        self,
        tokens: Tokens,
        token_bytes: npt.NDArray[np.int32],
        starts: npt.NDArray[np.int64],
        document_bytes: npt.NDArray[np.int64],
    ) -> None:
        """UserError when a document is charged other bytes than it has, or a sample of the tokens other bytes than
        their ids tell."""
        charged = np.add.reduceat(token_bytes, starts)  # No document has 2^31 bytes.
        wrong = np.flatnonzero((charged != document_bytes) | (token_bytes[starts] != 0))
        if len(wrong):
            at = int(wrong[0])
            raise UserError(
                f"the tokens of validation document {self.index('val').name(at)!r} of {self.directory} are charged "
                f"{charged[at]} bytes ({token_bytes[starts[at]]} of them its BOS), its text has {document_bytes[at]}: "
                "bits per byte would be wrong. Delete the directory and prepare it again."
            )
        sample = token_bytes[:SAMPLED_TOKENS]
        if self.front_end.lossless and not np.array_equal(self.front_end.count_bytes(tokens[: len(sample)]), sample):
            raise UserError(
                f"the validation tokens of {self.directory} do not stand for the bytes beside them: byte counts, "
                "tokenizer and transform do not belong together. Delete the directory and prepare it again."
            )

    def _token_bytes(self, tokens: Tokens) -> npt.NDArray[np.int32]:
        if self.manifest["byte_accounting"] == "sidecar":
            files = [self.directory / name for name in self.manifest["byte_files"]]
            return np.concatenate([read_shard(path) for path in files]).astype(np.int32)
        return table_bytes(self.front_end, tokens)

    def validation_text(self) -> bytes:
        """The validation documents, one after another, in UTF-8 (see texts)."""
        return b"".join(self.texts("val"))

    def training_text(self) -> Iterator[bytes]:
        """The training documents in UTF-8, one at a time, in shard order (see texts)."""
        return self.texts("train")

    def texts(self, split: str) -> Iterator[bytes]:
        """The documents of a split in UTF-8, in shard order: the originals where the front end is lossless, what
        normalisation left of them elsewhere."""
        for ids in iterate_documents(self.files(split), self.bos_id):
            yield self.front_end.decode(ids).encode()


def table_bytes(front_end: FrontEnd, tokens: Tokens) -> npt.NDArray[np.int32]:
    """int32 [n]: bytes of each token of a stream without a sidecar, from the ids alone. UserError for transformed text
    of a SentencePiece model: no table knows which of its operators are escaped."""
    if front_end.transform is not None and isinstance(front_end.tokenizer, Tokenizer):
        raise UserError(
            "the text was transformed, and there are no byte counts beside its tokens: a table of bytes per id would "
            "charge the operators, which stand for no text."
        )
    if isinstance(front_end.tokenizer, Tokenizer):
        return ByteTable.of(front_end.tokenizer).stream_bytes(tokens)
    return front_end.count_bytes(tokens).astype(np.int32)

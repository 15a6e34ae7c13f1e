"""The prepared data set: how it is described, made once, reused, and read."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pgolf.console import Console
from pgolf.data.documents import Source, split
from pgolf.data.manifest import (
    FORMAT,
    TOKENIZER,
    canonical_digest,
    check_sizes,
    read_documents,
    read_manifest,
)
from pgolf.data.prepare import build, preparation_lock
from pgolf.data.shards import iterate_documents, read_shard
from pgolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from pgolf.data.validation import BOS_ID, ValidationSet
from pgolf.errors import UserError
from pgolf.files import write_bytes


class Dataset:
    """A prepared directory. Opening it makes the cheap checks (sizes, headers, manifest digest)."""

    bos_id = BOS_ID

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: dict[str, Any] = read_manifest(directory)
        check_sizes(directory, self.manifest)
        self.digest: str = self.manifest["digest"]
        self.vocab_size: int = self.manifest["vocab_size"]
        self.train_files = self._files("train")

    def _files(self, split_name: str) -> list[Path]:
        return [self.directory / name for name in self.manifest["splits"][split_name]["files"]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer the shards were written with."""
        return Tokenizer.load(self.directory / TOKENIZER)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return self.tokenizer.decode(ids)

    def validation(self) -> ValidationSet:
        """Read the whole validation split. UserError when its parts do not belong together."""
        entries = [entry for entry in read_documents(self.directory) if entry.split == "val"]
        tokens = np.concatenate([read_shard(path) for path in self._files("val")])
        sidecar = [self.directory / name for name in self.manifest["byte_files"]]
        token_bytes = np.concatenate([read_shard(path) for path in sidecar]).astype(np.int32)
        starts = np.flatnonzero(tokens == self.bos_id).astype(np.int64)
        if len(tokens) != len(token_bytes) or len(starts) != len(entries):
            raise UserError(
                f"the validation split of {self.directory} is inconsistent: {len(tokens)} tokens "
                f"with {len(token_bytes)} byte counts, {len(starts)} BOS for {len(entries)} "
                "documents; delete it and prepare it again."
            )
        document_bytes = np.array([entry.bytes for entry in entries], np.int64)
        return ValidationSet(tokens, token_bytes, starts, document_bytes, [entry.name for entry in entries])

    def validation_text(self) -> bytes:
        """The original validation documents, one after another, in UTF-8."""
        return b"".join(self._texts("val"))

    def training_text(self) -> Iterator[bytes]:
        """The original training documents in UTF-8, one at a time, in shard order."""
        return self._texts("train")

    def _texts(self, split_name: str) -> Iterator[bytes]:
        for ids in iterate_documents(self._files(split_name), self.bos_id):
            yield self.tokenizer.decode(ids.tolist()).encode()


class DataConfig:
    """What the data is: a source of documents, a tokenizer, and a split by document.

    Args:
        name: prefix of the prepared directory's name.
        source: where documents come from.
        tokenizer: how the tokenizer is trained (on training documents only).
        val_fraction: share of the documents that is held out, chosen by the hash of the text.
        shard_tokens: tokens per shard file.
        order: documents lie in the shards by hash (a shuffle without a seed) or as the source gave
            them.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Source,
        tokenizer: SentencePieceTokenizer,
        val_fraction: float = 0.04,
        shard_tokens: int = 100_000_000,
        order: Literal["hash", "source"] = "hash",
    ):
        if not 0.0 < val_fraction < 1.0:
            raise ValueError(f"val_fraction={val_fraction} must lie between 0 and 1, both excluded")
        if shard_tokens < 2:
            raise ValueError(f"shard_tokens={shard_tokens} must be at least 2")
        if order not in ("hash", "source"):
            raise ValueError(f"order={order!r} must be hash or source")
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ValueError(f"name={name!r} must be made of letters, digits, - and _")
        self.name = name
        self.source = source
        self.tokenizer = tokenizer
        self.val_fraction = val_fraction
        self.shard_tokens = shard_tokens
        self.order = order

    @property
    def vocab_size(self) -> int:
        """Number of token ids; known before anything is prepared."""
        return self.tokenizer.vocab_size

    def recipe(self) -> dict[str, Any]:
        """JSON values that determine the prepared directory, byte for byte."""
        return {
            "name": self.name,
            "source": self.source.identity(),
            "tokenizer": self.tokenizer.identity(),
            "val_fraction": self.val_fraction,
            "shard_tokens": self.shard_tokens,
            "order": self.order,
        }

    def directory(self, root: Path) -> Path:
        """Where `prepare(root)` puts the data: one directory per recipe, so recipes never mix."""
        return root / f"{self.name}-{canonical_digest(self.recipe() | {'format': FORMAT})[:12]}"

    def prepare(self, root: Path, console: Console) -> Dataset:
        """Prepare the data below `root`, or reuse what an earlier call prepared.

        Another process that prepares the same data is waited for. A directory that fails the cheap
        checks is a UserError: it is never repaired or overwritten silently.
        """
        directory = self.directory(root)
        if directory.exists():  # No lock: what is there is whole, and may lie on a read-only disk.
            return _reuse(directory, console)
        with preparation_lock(root, directory.name, console):
            if directory.exists():  # Another process made it while this one waited.
                return _reuse(directory, console)
            console.say(f"Preparing {self.name} data in {directory}.")
            build(directory, self.source.gather(console), self.recipe(), self.tokenizer, console)
        dataset = Dataset(directory)
        console.say(_summary(dataset.manifest))
        return dataset

    def train_tokenizer(self, path: Path, console: Console) -> Tokenizer:
        """Train the tokenizer alone, on the training documents, and write its model to `path`."""
        gathered = self.source.gather(console)
        training, _ = split(gathered.documents, self.val_fraction, self.order)
        tokenizer = self.tokenizer.train(document.text for document in training)
        write_bytes(path, tokenizer.model)
        return tokenizer


def _reuse(directory: Path, console: Console) -> Dataset:
    dataset = Dataset(directory)
    console.say(f"Reusing the prepared data in {directory}.")
    return dataset


def _summary(manifest: dict[str, Any]) -> str:
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    skipped = ", ".join(f"{count} {reason}" for reason, count in manifest["skipped"].items() if count)
    return (
        f"Prepared {train['documents']} training documents ({train['tokens']} tokens, "
        f"{train['bytes']} bytes) and {val['documents']} validation documents ({val['tokens']} "
        f"tokens, {val['bytes']} bytes); left out: {skipped or 'none'}."
    )

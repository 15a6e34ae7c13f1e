"""Published data: shards that others tokenised, from a repository on the Hugging Face hub.

Published text is lossy: the tokenizers normalise, so the original documents cannot be recovered from the shards. A
document's bytes are therefore those that the published rules charge: the export's own byte counts for CaseOps
("sidecar"), a table per id for the others ("lut").
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.byte_tokenizer import ByteTokenizer
from pgolf.data.encoding.frontend import MODEL_FILE, FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.transform import Transform
from pgolf.data.manifest import FORMAT, canonical_digest
from pgolf.data.preparation.prepare import preparation_lock, sync_directory
from pgolf.data.published.checks import refuse_figures, refuse_front_end
from pgolf.data.published.download import Source, clear_scaffold, fetch, siblings_of
from pgolf.data.published.hub import Hub
from pgolf.data.published.index import charged_bytes
from pgolf.data.published.layout import Layout, sidecar_name, val_files
from pgolf.data.published.manifest import describe
from pgolf.data.shards import read_shard
from pgolf.errors import UserError


class PublishedData:
    """A published variant of the data: which repository, which files, and what is known about them.

    Args:
        name: of this option (data=NAME), and prefix of the directory's name.
        repository: owner/name of the data set repository.
        variant: of the export: its shards lie in fineweb10B_<variant>.
        vocab_size: number of ids.
        transform: what was done to the text before it was tokenised; null: nothing.
        root: folder in the repository that holds the manifest.
        revision: branch, tag or commit; null: the newest. The commit is recorded, and kept to when more is fetched.
        train_shards: how many of the training shards; each holds 100,000,000 tokens.
        tokenizer_sha256: of the tokenizer's file; null: not known beforehand.
        val_documents: documents of the validation split; null: not known.
        scored_tokens: what published evaluations scored, (n - 1) // 2048 * 2048 of the n validation tokens; several
            where there were several exports; empty: not known.
        scored_bytes: the bytes those tokens stand for, as published losses imply; null: not known.
        connections: files that are fetched at the same time.
    """

    def __init__(
        self,
        *,
        name: str,
        repository: str,
        variant: str,
        vocab_size: int,
        transform: Transform | None = None,
        root: str = "datasets",
        revision: str | None = None,
        train_shards: int = 80,
        tokenizer_sha256: str | None = None,
        val_documents: int | None = None,
        scored_tokens: list[int] | None = None,
        scored_bytes: int | None = None,
        connections: int = 4,
    ):
        if train_shards < 1:
            raise ValueError(f"train_shards={train_shards} must be at least 1")
        if not 1 <= connections <= 64:
            raise ValueError(f"connections={connections} must lie between 1 and 64")
        if repository.count("/") != 1:
            raise ValueError(f"repository={repository!r} must be owner/name")
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ValueError(f"name={name!r} must be made of letters, digits, - and _")
        self.name, self.repository, self.variant, self.vocab_size = name, repository, variant, vocab_size
        self.transform, self.root, self.revision, self.train_shards = transform, root, revision, train_shards
        self.tokenizer_sha256, self.connections = tokenizer_sha256, connections
        self.expected = {
            "val_documents": val_documents,
            "scored_tokens": list(scored_tokens or []),
            "scored_bytes": scored_bytes,
        }

    @property
    def source(self) -> Source:
        """Which files of which repository, apart from their number."""
        return Source(self.repository, self.revision, self.root, self.variant)

    def recipe(self) -> dict[str, Any]:
        """JSON values that determine what is downloaded."""
        return {
            "name": self.name,
            "repository": self.repository,
            "revision": self.revision,
            "root": self.root,
            "variant": self.variant,
            "transform": None if self.transform is None else self.transform.identity(),
            "vocab_size": self.vocab_size,
            "train_shards": self.train_shards,
            "tokenizer_sha256": self.tokenizer_sha256,
            "expected": self.expected,
        }

    def directory(self, root: Path, console: Console | None = None) -> Path:
        """Where `download(root)` puts the data: one directory per recipe, sharing its files with the others."""
        digest = canonical_digest(self.recipe() | {"format": FORMAT})[:12]
        return root / f"{self.name}-{self.train_shards}shards-{digest}"

    def differences(self, manifest: dict[str, Any]) -> list[str]:
        """What the configuration asks for and the data of `manifest` are not, in sentences."""
        origin = manifest.get("origin")
        if origin is None:
            return [f"the data were prepared from documents, data={self.name} asks for published ones"]
        asked = vars(self.source) | {"train_shards": self.train_shards}
        found = [
            f"data.{key}: downloaded was {origin.get(key)}, the configuration says {value}"
            for key, value in asked.items()
            if origin.get(key) != value
        ]
        front_end = manifest["front_end"]
        transform = None if self.transform is None else self.transform.identity()
        if front_end["transform"] != transform:
            found.append(
                f"data.transform: the shards hold text transformed by {front_end['transform']}, the configuration says "
                f"{transform}; tokens would be read as other text, and charged other bytes"
            )
        if self.tokenizer_sha256 not in (None, front_end["tokenizer"]["sha256"]):
            found.append(f"data.tokenizer_sha256: the tokenizer has {front_end['tokenizer']['sha256']}")
        return found

    def prepare(self, root: Path, console: Console) -> Dataset:
        """Open what was downloaded; UserError with the command to download it otherwise. Never uses the network."""
        directory = self.directory(root)
        if not directory.exists():
            raise UserError(self._absent(root, directory))
        dataset = Dataset(directory)
        dataset.refuse(self.differences(dataset.manifest))
        console.say(f"Reading the published data in {directory}.")
        return dataset

    def train_tokenizer(self, path: Path, console: Console) -> FrontEnd:
        """Refused: the shards come with the tokenizer that wrote them."""
        raise UserError(
            f"data={self.name} is published with its tokenizer, and the documents it was trained on are not part of "
            "the shards: train one on documents of your own (data=text or data=docs)."
        )

    def download(self, root: Path, console: Console, connect: Callable[[], Hub] | None = None) -> Dataset:
        """Fetch what is missing, describe it, and open it; nothing at all when it is complete.

        connect: opens the hub, when it is needed; None: the hub of the library's own settings.
        """
        directory = self.directory(root)
        if not directory.exists():
            with preparation_lock(root, directory.name, console):
                if not directory.exists():
                    self._fetch(directory, console, connect or (lambda: Hub(self.repository)))
            return Dataset(directory)
        dataset = Dataset(directory)
        dataset.refuse(self.differences(dataset.manifest))
        console.say(f"{directory} is complete: nothing is fetched.")
        return dataset

    def _absent(self, root: Path, directory: Path) -> str:
        command = f"pgolf data download data={self.name} data.train_shards={self.train_shards} paths.data={root}"
        others = [path.name for path in siblings_of(root, self.name, self.source)]
        there = f" The files of {', '.join(others)} are not fetched again." if others else ""
        return (
            f"{directory} is not there: published data are downloaded beforehand, where there is a network, with "
            f"`{command}` (and the same other settings of data).{there}"
        )

    def _fetch(self, directory: Path, console: Console, connect: Callable[[], Hub]) -> None:
        """Gather the files under a hidden name, describe them, rename."""
        working = directory.with_name(f".{directory.name}.partial")
        fetched = fetch(
            self.source,
            self.train_shards,
            self.vocab_size,
            working,
            siblings_of(directory.parent, self.name, self.source),
            self._accept_tokenizer,
            self._accept_validation,
            self.connections,
            connect,
            console,
        )
        clear_scaffold(working)
        describe(working, self.name, fetched, self._front_end(working), self.expected, console)
        os.replace(working, directory)
        sync_directory(directory.parent)

    def _accept_tokenizer(self, working: Path, layout: Layout, has_sidecar: bool) -> None:
        """UserError when the tokenizer and the layout are not those of this configuration."""
        if layout.vocab_size not in (None, self.vocab_size):
            raise UserError(
                f"{self.repository} says that {self.variant} has {layout.vocab_size} ids, but "
                f"data.vocab_size={self.vocab_size}."
            )
        front_end = self._front_end(working)
        refuse_front_end(front_end, self.vocab_size, self.tokenizer_sha256, has_sidecar, self.variant)

    def _accept_validation(self, working: Path, has_sidecar: bool) -> None:
        """UserError when the validation split is not the published one."""
        files = val_files(working)
        tokens = np.concatenate([read_shard(path) for path in files])
        if has_sidecar:
            counts = np.concatenate([read_shard(sidecar_name(path)) for path in files])
        else:
            counts = charged_bytes(self._front_end(working), tokens)
        refuse_figures(tokens, counts, self.expected, self.variant)

    def _front_end(self, working: Path) -> FrontEnd:
        path = working / MODEL_FILE
        return FrontEnd(self.transform, Tokenizer.load(path) if path.is_file() else ByteTokenizer())

"""How a data set is described in the configuration, prepared once, and reused."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from pgolf.console import Console
from pgolf.data.dataset import Dataset
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.tokenizer import TokenizerConfig
from pgolf.data.encoding.transform import Transform
from pgolf.data.manifest import FORMAT, canonical_digest
from pgolf.data.preparation.prepare import Preparation, build, preparation_lock, train_on, working_directory
from pgolf.data.preparation.processes import count_cores
from pgolf.data.sources.documents import Duplicates, Placed, Source, SplitRule, in_words, place
from pgolf.data.sources.fingerprints import FileHashes
from pgolf.data.verification.agreement import differences
from pgolf.errors import UserError
from pgolf.files import write_bytes


class Data(Protocol):
    """The data part of a configuration, as runs and verbs use it."""

    name: str

    @property
    def vocab_size(self) -> int:
        """Number of token ids; known before anything is prepared."""

    def directory(self, root: Path, console: Console | None = None) -> Path:
        """Where `prepare(root)` puts the data."""

    def prepare(self, root: Path, console: Console) -> Dataset:
        """The data, made now or found below `root`."""

    def differences(self, manifest: dict[str, Any]) -> list[str]:
        """What the configuration asks for and the data of `manifest` are not, in sentences."""

    def train_tokenizer(self, path: Path, console: Console) -> FrontEnd:
        """Train the tokenizer alone and write its model to `path`."""


class DataConfig:
    """What the data are: a source of documents, a front end (transform and tokenizer), and a split by document.

    Args:
        name: prefix of the prepared directory's name.
        source: where documents come from.
        transform: what is done to a text before it is tokenised; None does nothing.
        tokenizer: how the tokenizer is made (on training documents only).
        val_docs: the first so many documents are held out (the published rule); None with val_fraction.
        val_fraction: share of the documents that is held out, chosen by the hash of the text; None with val_docs.
        shard_tokens: tokens per shard file.
        order: documents lie in the shards by hash (a shuffle without a seed; the texts must fit into memory) or as
            the source gave them (a stream).
        duplicates: "drop" keeps the first of equal texts; "refuse" keeps them, except that a text in both splits is
            refused.
        workers: processes that encode; None uses every core. It changes nothing but the speed.
    """

    def __init__(
        self,
        *,
        name: str,
        source: Source,
        transform: Transform | None = None,
        tokenizer: TokenizerConfig,
        val_docs: int | None = None,
        val_fraction: float | None = None,
        shard_tokens: int = 100_000_000,
        order: Literal["hash", "source"] = "hash",
        duplicates: Duplicates = "drop",
        workers: int | None = None,
    ):
        self.rule = SplitRule(val_docs, val_fraction)
        if shard_tokens < 2:
            raise ValueError(f"shard_tokens={shard_tokens} must be at least 2")
        if order not in ("hash", "source"):
            raise ValueError(f"order={order!r} must be hash or source")
        if duplicates not in ("drop", "refuse"):
            raise ValueError(f"duplicates={duplicates!r} must be drop or refuse")
        if workers is not None and workers < 1:
            raise ValueError(f"workers={workers} must be at least 1, or null for every core")
        if not name or not all(c.isalnum() or c in "-_" for c in name):
            raise ValueError(f"name={name!r} must be made of letters, digits, - and _")
        self.name, self.source, self.transform, self.tokenizer = name, source, transform, tokenizer
        self.shard_tokens, self.order, self.duplicates, self.workers = shard_tokens, order, duplicates, workers

    @property
    def vocab_size(self) -> int:
        """Number of token ids; known before anything is prepared."""
        return self.tokenizer.vocab_size

    def recipe(self, root: Path | None = None, console: Console | None = None) -> dict[str, Any]:
        """JSON values that determine the prepared directory, byte for byte.

        Args:
            root: paths.data, where the hashes of big source files are kept; None computes them again.
            console: shows the progress of hashing them.
        """
        hashes = FileHashes(root / ".source-hashes.json" if root else None, console)
        return self._settings() | {"source": self.source.identity(hashes)}

    def _settings(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "transform": None if self.transform is None else self.transform.identity(),
            "tokenizer": self.tokenizer.identity(),
            "split": {key: value for key, value in vars(self.rule).items() if value is not None},
            "shard_tokens": self.shard_tokens,
            "order": self.order,
            "duplicates": self.duplicates,
        }

    def directory(self, root: Path, console: Console | None = None) -> Path:
        """Where `prepare(root)` puts the data: one directory per recipe, so recipes never mix."""
        return self._directory(root, self.recipe(root, console))

    def _directory(self, root: Path, recipe: dict[str, Any]) -> Path:
        return root / f"{self.name}-{canonical_digest(recipe | {'format': FORMAT})[:12]}"

    def differences(self, manifest: dict[str, Any]) -> list[str]:
        """What the configuration asks for and prepared data are not, in sentences: transform, tokenizer, split."""
        return differences(manifest, self._settings())

    def prepare(self, root: Path, console: Console) -> Dataset:
        """Prepare the data below `root`, or reuse what an earlier call prepared, or go on where one was interrupted.

        Another process that prepares the same data is waited for. A directory that fails the cheap
        checks, or holds other data, is a UserError: it is never repaired or overwritten silently.
        """
        recipe = self.recipe(root, console)
        directory = self._directory(root, recipe)
        if directory.exists():  # No lock: what is there is whole, and may lie on a read-only disk.
            return self._reuse(directory, console)
        with preparation_lock(root, directory.name, console):
            if directory.exists():  # Another process made it while this one waited.
                return self._reuse(directory, console)
            console.say(f"Preparing {self.name} data in {directory}.")
            build(directory, self._preparation(recipe, console), console)
        dataset = Dataset(directory)
        console.say(_summary(dataset.manifest))
        return dataset

    def _reuse(self, directory: Path, console: Console) -> Dataset:
        dataset = Dataset(directory)
        dataset.refuse(self.differences(dataset.manifest))
        # A process that was killed right after the last rename left what it worked with.
        shutil.rmtree(working_directory(directory), ignore_errors=True)
        console.say(f"Reusing the prepared data in {directory}.")
        return dataset

    def train_tokenizer(self, path: Path, console: Console) -> FrontEnd:
        """Train the tokenizer alone, on the training documents, and write its model to `path`."""
        front_end = train_on(self._preparation(self._settings(), console))
        if not isinstance(front_end.tokenizer, Tokenizer):
            raise UserError(f"data.tokenizer ({front_end.tokenizer.kind}) has no model file; nothing is to be trained.")
        write_bytes(path, front_end.tokenizer.model)
        return front_end

    def _preparation(self, recipe: dict[str, Any], console: Console) -> Preparation:
        def stream(left_out: Counter[str]) -> Iterator[Placed]:
            return place(self.source.documents(console, left_out), self.rule, self.duplicates, left_out)

        documents = _shuffled(stream) if self.order == "hash" else stream
        workers = self.workers or count_cores()
        return Preparation(recipe, documents, self.rule, self.transform, self.tokenizer, self.shard_tokens, workers)


def _shuffled(stream: Callable[[Counter[str]], Iterable[Placed]]) -> Callable[[Counter[str]], Iterable[Placed]]:
    """The documents of a stream by the hash of their text: a shuffle without a seed. Read once, kept in memory.

    Neighbours in a source are often about one subject, and a short training run that read them in the order of the
    source would see one subject only.
    """
    kept: list[Placed] = []
    counted: Counter[str] = Counter()

    def shuffled(left_out: Counter[str]) -> Iterable[Placed]:
        if not kept:
            kept.extend(sorted(stream(counted), key=lambda placed: placed.document.sha256))
        left_out.update(counted)
        return iter(kept)

    return shuffled


def _summary(manifest: dict[str, Any]) -> str:
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    return (
        f"Prepared {train['documents']} training documents ({train['tokens']} tokens, "
        f"{train['bytes']} bytes) and {val['documents']} validation documents ({val['tokens']} "
        f"tokens, {val['bytes']} bytes); left out: {in_words(manifest['left_out'])}."
    )

"""Building a prepared directory: split, train the tokenizer, encode, check, write, rename."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console
from pgolf.data.bytes import ByteTable, check_document_bytes
from pgolf.data.documents import SPLIT_RULE, Document, Gathered, split
from pgolf.data.manifest import (
    TOKENIZER,
    Entry,
    refuse_overlap,
    split_totals,
    write_documents,
    write_manifest,
)
from pgolf.data.shards import ShardWriter
from pgolf.data.tokenizer import SentencePieceTokenizer, Tokenizer
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError
from pgolf.files import write_bytes

BATCH_DOCUMENTS = 64


@contextlib.contextmanager
def preparation_lock(root: Path, name: str, console: Console) -> Iterator[None]:
    """Let one process at a time prepare `name`; others wait, and then find it prepared."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = open(root / f".{name}.lock", "w")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise UserError(f"cannot write in {root} (paths.data): {error.strerror or error}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.say(f"Another process is preparing {root / name}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(
    directory: Path,
    gathered: Gathered,
    recipe: dict[str, Any],
    trainer: SentencePieceTokenizer,
    console: Console,
) -> None:
    """Write a whole prepared directory under a temporary name, then rename it to `directory`.

    Args:
        gathered: the documents of the source.
        recipe: what identifies the result: keys name, source, tokenizer, val_fraction,
            shard_tokens, order.
        trainer: how to train the tokenizer.

    Call it under `preparation_lock`: an older temporary directory was left by a killed process and
    is removed. Raises UserError when a split is empty, a document does not round-trip, or byte
    counts differ.
    """
    training, validation = split(gathered.documents, recipe["val_fraction"], recipe["order"])
    if not gathered.documents:
        raise UserError("data.source gave no document: name files that hold some (see data.source.paths).")
    for documents, what in ((training, "training"), (validation, "validation")):
        if not documents:
            raise UserError(
                f"none of the {len(gathered.documents)} documents falls in the {what} split with "
                f"data.val_fraction={recipe['val_fraction']}; change it or give more documents."
            )
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        console.say(f"Training a tokenizer of {trainer.vocab_size} pieces on training documents.")
        tokenizer = trainer.train(document.text for document in training)
        write_bytes(temporary / TOKENIZER, tokenizer.model)
        encoder = _Encoder(temporary, tokenizer, recipe["shard_tokens"], console)
        train_entries = encoder.write_split("train", training)
        val_entries = encoder.write_split("val", validation)
        entries = train_entries + val_entries
        refuse_overlap(entries)
        write_documents(temporary, entries)
        write_manifest(
            temporary,
            recipe
            | {
                "bos_id": BOS_ID,
                "vocab_size": tokenizer.vocab_size,
                "tokenizer_sha256": tokenizer.sha256,
                "split_rule": SPLIT_RULE,
                "skipped": gathered.skipped,
                "splits": {
                    "train": split_totals(entries, "train", encoder.files["train"]),
                    "val": split_totals(entries, "val", encoder.files["val"]),
                },
                "byte_files": [path.name for path in encoder.files["val_bytes"]],
            },
        )
        os.replace(temporary, directory)
        _sync_directory(directory.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {directory}: {error.strerror or error}. Free some space or set paths.data."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Encoder:
    """Encode documents into shards, checking each one's round trip and its bytes by both paths."""

    def __init__(self, directory: Path, tokenizer: Tokenizer, shard_tokens: int, console: Console):
        self.directory, self.tokenizer, self.shard_tokens = directory, tokenizer, shard_tokens
        self.console = console
        self.table = ByteTable.of(tokenizer)
        self.files: dict[str, list[Path]] = {}

    def write_split(self, name: str, documents: Sequence[Document]) -> list[Entry]:
        """Write the shards of one split, and for "val" the byte sidecar beside them."""
        tokens = ShardWriter(self.directory, name, self.shard_tokens)
        sidecar = ShardWriter(self.directory, f"{name}_bytes", self.shard_tokens)
        entries: list[Entry] = []
        with self.console.task(f"Encoding {name} documents", len(documents)) as task:
            for start in range(0, len(documents), BATCH_DOCUMENTS):
                batch = documents[start : start + BATCH_DOCUMENTS]
                encoded = self.tokenizer.encode_batch([document.text for document in batch])
                for document, ids in zip(batch, encoded, strict=True):
                    stream = np.array([BOS_ID, *ids], np.uint16)
                    charged = self._check(document, stream)
                    tokens.add(stream)
                    if name == "val":
                        sidecar.add(charged)
                    entries.append(Entry(name, document.name, document.sha256, document.num_bytes, len(ids)))
                task.update(len(entries))
        self.files[name] = tokens.close()
        self.files[f"{name}_bytes"] = sidecar.close()
        return entries

    def _check(self, document: Document, stream: np.ndarray) -> np.ndarray:
        text = self.tokenizer.decode(stream[1:].tolist())
        charged = self.table.stream_bytes(stream)
        check_document_bytes(document.name, document.num_bytes, len(text.encode()), int(charged.sum()))
        if text != document.text:
            raise UserError(f"document {document.name!r} does not survive encoding and decoding by the tokenizer.")
        return charged


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

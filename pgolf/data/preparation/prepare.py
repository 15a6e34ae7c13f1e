"""Building a prepared directory: split, train the tokenizer, encode, check, write, rename."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.console import Console
from pgolf.data.encoding.frontend import FrontEnd, train_front_end
from pgolf.data.encoding.tokenizer import TokenizerConfig
from pgolf.data.encoding.transform import Transform
from pgolf.data.index import DocumentIndex
from pgolf.data.manifest import split_totals, write_manifest
from pgolf.data.preparation.encode import BATCH_CHARACTERS, BATCH_DOCUMENTS, Batch, encode_batches
from pgolf.data.preparation.writer import SplitWriter
from pgolf.data.shards import iterate_documents
from pgolf.data.sources.documents import Document, Placed, Split, SplitRule
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError
from pgolf.files import read_json, write_json

CONTINUES = "The same command continues after the last finished shard."


@dataclass(frozen=True)
class Preparation:
    """What is prepared.

    Attributes:
        recipe: JSON values that identify the result.
        documents: reads the kept documents from the beginning, in the order of the shards; counts what is left out.
        rule: which documents are held out.
        transform, tokenizer: the front end; the tokenizer is trained on training documents only.
        shard_tokens: tokens per shard file.
        workers: processes that encode.
    """

    recipe: dict[str, Any]
    documents: Callable[[Counter[str]], Iterable[Placed]]
    rule: SplitRule
    transform: Transform | None
    tokenizer: TokenizerConfig
    shard_tokens: int
    workers: int


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


def working_directory(directory: Path) -> Path:
    """Where a preparation of `directory` works, and what a killed one leaves behind to be continued."""
    return directory.with_name(f".{directory.name}.partial")


def build(directory: Path, preparation: Preparation, console: Console) -> None:
    """Write a whole prepared directory under a hidden name, then rename it to `directory`.

    Call it under `preparation_lock`. A preparation that was killed, or stopped by a full disk, is continued after its
    last finished shard. UserError when a split is empty, a document does not round-trip, byte counts differ or a text
    is in both splits: nothing is left behind then, for another try would end the same.
    """
    working = working_directory(directory)
    data, state = working / "data", working / "state"
    try:
        data.mkdir(parents=True, exist_ok=True)
        state.mkdir(exist_ok=True)
        _fill(data, state, preparation, console)
        os.replace(data, directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise UserError(f"cannot write {directory}: {error.strerror or error}. {CONTINUES}") from error
    except UserError as error:
        if isinstance(error.__cause__, OSError | BrokenProcessPool):
            raise UserError(f"{error} {CONTINUES}") from error
        shutil.rmtree(working, ignore_errors=True)
        raise
    shutil.rmtree(working, ignore_errors=True)


def _fill(data: Path, state: Path, preparation: Preparation, console: Console) -> None:
    """Everything that goes into the prepared directory."""
    front_end = _front_end(data, state, preparation, console)
    writers: dict[Split, SplitWriter] = {
        "train": SplitWriter(data, state, "train", preparation.shard_tokens, sidecar=False),
        "val": SplitWriter(data, state, "val", preparation.shard_tokens, sidecar=True),
    }
    if any(writer.shards for writer in writers.values()):
        console.say(
            f"Continuing the preparation that was interrupted: {writers['train'].shards} training and "
            f"{writers['val'].shards} validation shards are finished."
        )
    left_out: Counter[str] = Counter()
    ranges: dict[Split, list[int]] = {}
    batches = _batches(_remaining(preparation.documents(left_out), writers, ranges))
    with console.task("Encoding documents", None) as task:
        documents = num_bytes = 0
        for batch, encoded in encode_batches(front_end, batches, preparation.workers):
            writers[batch.split].add(batch.first, batch.documents, encoded)
            documents += len(batch.documents)
            num_bytes += sum(document.num_bytes for document in batch.documents)
            task.update(documents, MB=round(num_bytes / 1e6))
    splits: dict[Split, dict[str, Any]] = {}
    for split, writer in writers.items():
        files = writer.close()
        splits[split] = split_totals(data, split, files) | {
            "first_document": ranges[split][0],
            "last_document": ranges[split][1],
            "no_token_left": writer.no_token_left,
        }
        if not splits[split]["documents"]:
            raise UserError(f"no document of the {split} split has a token left after the tokenizer's normalisation.")
    if not front_end.lossless:
        _say_shared(data, splits, console)
    left_out["no_token_left"] = sum(writer.no_token_left for writer in writers.values())
    content = {
        "name": preparation.recipe["name"],
        "recipe": preparation.recipe,
        "front_end": front_end.description(),
        "vocab_size": front_end.vocab_size,
        "bos_id": BOS_ID,
        "lossless": front_end.lossless,
        "byte_accounting": "sidecar",
        "split": preparation.rule.description(),
        "left_out": {reason: count for reason, count in sorted(left_out.items()) if count},
        "splits": splits,
        "byte_files": [path.name for path in writers["val"].files("val_bytes")],
    }
    write_manifest(data, content, console)


def _say_shared(data: Path, splits: Mapping[Split, dict[str, Any]], console: Console) -> None:
    """Say which different texts on both sides became the same tokens, because the tokenizer normalises; equal texts
    were refused or dropped before."""

    def digests(split: Split) -> Iterator[bytes]:
        for ids in iterate_documents([data / name for name in splits[split]["files"]], BOS_ID):
            yield hashlib.sha256(ids.data).digest()

    validation = {digest: number for number, digest in enumerate(digests("val"))}
    shared = [(validation[digest], number) for number, digest in enumerate(digests("train")) if digest in validation]
    if shared:
        val, train = (
            DocumentIndex(data, split).name(at) for split, at in zip(("val", "train"), shared[0], strict=True)
        )
        console.say(
            f"{len(shared)} training documents have the tokens of a validation document, though not its text (the "
            f"tokenizer normalises): the first is {train!r}, like {val!r}. Scores are too good by what they teach, and "
            "`pgolf data verify` fails: take them out of the source."
        )


def _front_end(data: Path, state: Path, preparation: Preparation, console: Console) -> FrontEnd:
    """The front end of an interrupted preparation, or a new one."""
    kept = state / "front_end.json"
    if kept.exists():
        return FrontEnd.load(data, read_json(kept))
    texts = (placed.document.text for placed in preparation.documents(Counter()) if placed.split == "train")
    first = next(texts)  # When there is none, the stream itself says so.
    console.say(f"Making a tokenizer of {preparation.tokenizer.vocab_size} ids from training documents.")
    front_end = train_front_end(preparation.transform, preparation.tokenizer, _chain(first, texts))
    front_end.save(data)
    write_json(kept, front_end.description())
    return front_end


def train_on(preparation: Preparation) -> FrontEnd:
    """The front end alone, trained on the training documents."""
    texts = (placed.document.text for placed in preparation.documents(Counter()) if placed.split == "train")
    return train_front_end(preparation.transform, preparation.tokenizer, _chain(next(texts), texts))


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _remaining(
    stream: Iterable[Placed], writers: dict[Split, SplitWriter], ranges: dict[Split, list[int]]
) -> Iterator[tuple[Split, int, Document]]:
    """(split, position in the split's stream, document) of what is not finished; notes first and last numbers."""
    positions: Counter[Split] = Counter()
    for number, split, document in stream:
        known = ranges.setdefault(split, [number, number])
        known[0], known[1] = min(known[0], number), max(known[1], number)
        position = positions[split]
        positions[split] += 1
        if position >= writers[split].taken:
            yield split, position, document


def _batches(stream: Iterable[tuple[Split, int, Document]]) -> Iterator[Batch]:
    """Neighbours of a split together, a batch as soon as it is full."""
    filling: dict[Split, Batch] = {}
    characters: Counter[Split] = Counter()
    for split, position, document in stream:
        batch = filling.setdefault(split, Batch(split, position, []))
        batch.documents.append(document)
        characters[split] += len(document.text)
        if len(batch.documents) >= BATCH_DOCUMENTS or characters[split] >= BATCH_CHARACTERS:
            characters[split] = 0
            yield filling.pop(split)
    yield from filling.values()


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

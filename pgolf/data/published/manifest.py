"""Describing downloaded shards: the index of their documents, the totals of each split, and where all came from."""

from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.index import Rows, write_index
from pgolf.data.manifest import split_totals, write_manifest
from pgolf.data.published.download import Fetched
from pgolf.data.published.index import index_shards
from pgolf.data.published.layout import sidecar_name, train_files, val_files
from pgolf.data.shards import read_shard
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError


def describe(
    directory: Path,
    name: str,
    fetched: Fetched,
    front_end: FrontEnd,
    expected: dict[str, Any],
    console: Console,
) -> None:
    """Write what makes the files in `directory` a prepared data set; documents that are empty or in both splits are
    said, and `pgolf data verify` fails for them.

    UserError when a file is no longer what the hub lists (kept from an earlier attempt, or shared).
    """
    train, val = train_files(directory), val_files(directory)
    sidecar = [sidecar_name(path) for path in val] if front_end.transform is not None else []
    rows = {
        "val": index_shards(front_end, val, console, "Reading validation shards"),
        "train": index_shards(front_end, train, console, "Reading training shards"),
    }
    if sidecar:  # What the export charges, instead of what the ids tell.
        counts = np.concatenate([read_shard(path) for path in sidecar]).astype(np.int64)
        rows["val"]["bytes"] = np.add.reduceat(counts, np.cumsum(rows["val"]["tokens"] + 1) - rows["val"]["tokens"] - 1)
    _say_faults(rows, console)
    first = {"val": 0, "train": len(rows["val"])}
    splits = {}
    for split, files in (("train", train), ("val", val)):
        write_index(directory, split, rows[split], (f"{split} {number}" for number in range(len(rows[split]))))
        splits[split] = split_totals(directory, split, files) | {
            "first_document": first[split],
            "last_document": first[split] + len(rows[split]) - 1,
            "no_token_left": 0,
        }
    content = {
        "name": name,
        "origin": fetched.origin,
        "expected": expected,
        "front_end": front_end.description(),
        "vocab_size": front_end.vocab_size,
        "bos_id": BOS_ID,
        "lossless": front_end.lossless,
        "byte_accounting": "sidecar" if sidecar else "lut",
        "split": {
            "rule": "as published: the first val_docs documents are validation, the rest is training",
            "val_docs": expected["val_documents"] or len(rows["val"]),
        },
        "left_out": {},
        "splits": splits,
        "byte_files": [path.name for path in sidecar],
    }
    manifest = write_manifest(directory, content, console)
    for local, remote in fetched.files.items():
        if remote.sha256 not in (None, manifest["files"][local]["sha256"]):
            (directory / local).unlink()
            raise UserError(
                f"{local} does not have the hash that the hub lists for it any more: it was damaged on this disk. If "
                "another download shares it, `pgolf data verify DIR` says so: delete that one. The same command then "
                "fetches the file again."
            )


def _say_faults(rows: dict[str, Rows], console: Console) -> None:
    """Say what is wrong with the export itself; it is used as it is, for published scores were made on it."""
    for split, own in rows.items():
        empty = int((own["tokens"] == 0).sum())
        if empty:
            console.say(f"{empty} {split} documents of the export are empty.")
    validation = {digest.tobytes(): number for number, digest in enumerate(rows["val"]["sha256"])}
    shared = [
        (number, validation[digest.tobytes()])
        for number, digest in enumerate(rows["train"]["sha256"])
        if digest.tobytes() in validation
    ]
    if shared:
        console.say(
            f"{len(shared)} training documents of the export are also validation documents, the first is training "
            f"document {shared[0][0]}, validation document {shared[0][1]}: scores are too good by what they teach."
        )

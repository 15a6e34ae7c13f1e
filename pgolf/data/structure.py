"""The checks of a prepared directory that decode no text: each returns its figures, or raises UserError."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console
from pgolf.data.documents import SplitRule
from pgolf.data.frontend import FrontEnd
from pgolf.data.index import DocumentIndex
from pgolf.data.manifest import MANIFEST, SPLITS, check_files, hash_files
from pgolf.data.shards import read_shard, shard_length
from pgolf.errors import UserError

ZERO_RUN = 1024  # Consecutive padding tokens that no text gives but unwritten storage does.


def sizes(directory: Path, manifest: dict[str, Any]) -> str:
    """Every file is there with its size, and no other."""
    check_files(directory, manifest)
    unlisted = {path.name for path in directory.iterdir()} - set(manifest["files"]) - {MANIFEST}
    if unlisted:
        raise UserError(f"{directory} holds files its manifest does not list: {sorted(unlisted)}.")
    return f"{len(manifest['files'])} files, as listed"


def hashes(directory: Path, manifest: dict[str, Any], console: Console) -> str:
    """Every file has its SHA-256."""
    there = [name for name in manifest["files"] if (directory / name).is_file()]
    for name, digest in hash_files(directory, there, console).items():
        if digest != manifest["files"][name]["sha256"]:
            raise UserError(f"{directory / name} does not have the SHA-256 of its manifest.")
    return f"{len(there)} files have the SHA-256 of the manifest"


def _shards(directory: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    for split in SPLITS:
        yield from (directory / name for name in manifest["splits"][split]["files"])
    yield from (directory / name for name in manifest["byte_files"])


def headers(directory: Path, manifest: dict[str, Any]) -> str:
    """The header of each shard promises the size of its file, and all together the tokens of the manifest."""
    values = [shard_length(path) for path in _shards(directory, manifest)]
    for split in SPLITS:
        totals = manifest["splits"][split]
        tokens = sum(shard_length(directory / name) for name in totals["files"])
        if tokens != totals["tokens"]:
            raise UserError(f"the {split} shards hold {tokens} tokens, the manifest says {totals['tokens']}.")
    return f"{len(values)} headers agree with the sizes of their files and with the manifest"


def contents(directory: Path, manifest: dict[str, Any]) -> str:
    """No shard has a hole."""
    paths = list(_shards(directory, manifest))
    for path in paths:
        edges = np.concatenate([[-1], np.flatnonzero(read_shard(path))])
        if len(edges) > 1 and int(np.diff(edges).max()) > ZERO_RUN:
            raise UserError(f"the shard {path} holds a run of more than {ZERO_RUN} zeros: it was not written wholly.")
    return f"no run of {ZERO_RUN} zeros in {len(paths)} shards"


def tokenizer(directory: Path, manifest: dict[str, Any]) -> str:
    """The tokenizer is the one that the manifest describes."""
    front_end = FrontEnd.load(directory, manifest["front_end"])
    if front_end.vocab_size != manifest["vocab_size"] or front_end.lossless != manifest["lossless"]:
        raise UserError(
            f"the tokenizer has {front_end.vocab_size} ids and is {'' if front_end.lossless else 'not '}lossless; the "
            f"manifest says {manifest['vocab_size']} ids and lossless={manifest['lossless']}."
        )
    return f"{front_end.vocab_size} ids, SHA-256 {manifest['front_end']['tokenizer']['sha256'][:16]}"


def counts(directory: Path, manifest: dict[str, Any]) -> str:
    """The index and its names agree with the counts of the manifest."""
    for split in SPLITS:
        totals, index = manifest["splits"][split], DocumentIndex(directory, split)
        found = {
            "documents": len(index),
            "tokens": int(index.starts[-1]),
            "bytes": int(index.rows["bytes"].sum()),
            "charged": int(index.rows["bytes"].sum()),
        }
        for key, value in found.items():
            if value != totals[key]:
                raise UserError(f"the {split} index counts {value} {key}, the manifest says {totals[key]}.")
        for _ in index.names():
            pass  # Reading them checks them.
    return ", ".join(f"{manifest['splits'][split]['documents']} {split}" for split in SPLITS)


def partition(directory: Path, manifest: dict[str, Any]) -> str:
    """The documents are on the sides that the rule puts them, and their numbers leave no gap."""
    rule = manifest["split"]
    train, val = manifest["splits"]["train"], manifest["splits"]["val"]
    given = {
        split: manifest["splits"][split]["documents"] + manifest["splits"][split]["no_token_left"] for split in SPLITS
    }
    if max(train["last_document"], val["last_document"]) + 1 != sum(given.values()):
        raise UserError(
            f"the documents are numbered up to {max(train['last_document'], val['last_document'])}, but "
            f"{sum(given.values())} are there: some are missing or there twice."
        )
    if rule.get("val_docs") is not None:
        wanted = rule["val_docs"]
        if given["val"] != wanted or (val["first_document"], val["last_document"]) != (0, wanted - 1):
            raise UserError(
                f"the validation split has {given['val']} documents (numbers {val['first_document']} to "
                f"{val['last_document']}), its rule says the first {wanted}: it is another partition."
            )
        if train["first_document"] != wanted:
            raise UserError(f"training begins with document {train['first_document']}, the rule says {wanted}.")
        return f"validation is documents 0 to {wanted - 1}, training {wanted} to {train['last_document']}"
    side = SplitRule(None, rule["val_fraction"])
    for split in SPLITS:
        index = DocumentIndex(directory, split)
        for number, digest in enumerate(index.rows["sha256"]):
            if side.split_of(0, digest.tobytes()) != split:
                raise UserError(f"document {index.name(number)!r} is in the {split} split against the split rule.")
    return "every document is on the side of its hash"


def _tokens(directory: Path, manifest: dict[str, Any], split: str) -> Iterator[np.ndarray]:
    for name in manifest["splits"][split]["files"]:
        yield read_shard(directory / name)


def vocabulary(directory: Path, manifest: dict[str, Any]) -> str:
    """No id lies beyond the vocabulary."""
    for split in SPLITS:
        for name, values in zip(manifest["splits"][split]["files"], _tokens(directory, manifest, split), strict=True):
            if int(values.max()) >= manifest["vocab_size"]:
                at = int(np.argmax(values >= manifest["vocab_size"]))
                raise UserError(
                    f"token {at} of {name} has the id {values[at]}, the vocabulary ends at {manifest['vocab_size']}."
                )
    return f"every id is below {manifest['vocab_size']}"


def bos_count(directory: Path, manifest: dict[str, Any]) -> str:
    """There is one BOS for each document."""
    for split in SPLITS:
        count = sum(int((values == manifest["bos_id"]).sum()) for values in _tokens(directory, manifest, split))
        if count != manifest["splits"][split]["documents"]:
            raise UserError(
                f"the {split} split has {count} BOS tokens for {manifest['splits'][split]['documents']} documents."
            )
    return "one BOS a document"


def empty(directory: Path, manifest: dict[str, Any]) -> str:
    """No document is empty."""
    for split in SPLITS:
        last = -1  # The token before the shard, for a document that would begin at its end.
        for name, values in zip(manifest["splits"][split]["files"], _tokens(directory, manifest, split), strict=True):
            is_bos = np.concatenate([[last], values]) == manifest["bos_id"]
            for at in np.flatnonzero(is_bos[1:] & is_bos[:-1]):
                raise UserError(f"the document before token {at} of {name} is empty: two BOS follow each other.")
            last = int(values[-1])
        if last == manifest["bos_id"]:
            raise UserError(f"the last document of the {split} split is empty: it ends with a BOS.")
    return "every document has a token"


def starts(directory: Path, manifest: dict[str, Any]) -> str:
    """Each document begins with BOS where the index says."""
    for split in SPLITS:
        starts, offset, seen = DocumentIndex(directory, split).starts, 0, 0
        for name, values in zip(manifest["splits"][split]["files"], _tokens(directory, manifest, split), strict=True):
            here = np.flatnonzero(values == manifest["bos_id"]) + offset
            expected = starts[seen : seen + len(here)]
            if not np.array_equal(here, expected) or (offset == 0 and (not len(here) or here[0] != 0)):
                raise UserError(f"{name}: a document does not begin where the index says it does (BOS is missing).")
            offset, seen = offset + len(values), seen + len(here)
    return "every document begins with BOS where the index says"

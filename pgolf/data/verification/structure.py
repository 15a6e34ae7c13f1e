"""The checks of a prepared directory that decode no text: each returns its figures, or raises UserError."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.console import Console
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.index import DocumentIndex
from pgolf.data.manifest import MANIFEST, SPLITS, check_agreement, check_files, hash_files
from pgolf.data.shards import Tokens, blocks, read_shard, shard_length
from pgolf.data.sources.documents import SplitRule
from pgolf.errors import UserError

ZERO_RUN = 1024  # Consecutive padding tokens that no text gives but unwritten storage does.


def agreement(directory: Path, manifest: dict[str, Any]) -> str:
    """What was asked for, the front end and the split of the manifest can all be true."""
    check_agreement(directory, manifest)
    return "recipe, front end, split and byte counts of the manifest go together"


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
        last = -1  # The last token so far that is not zero.
        for first, block in blocks(read_shard(path)):
            edges = np.concatenate([[last], np.flatnonzero(block) + first, [first + len(block)]])
            if int(np.diff(edges).max()) > ZERO_RUN:
                raise UserError(f"the shard {path} holds a run of {ZERO_RUN} zeros or more: it was not written wholly.")
            last = int(edges[-2])
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


def _tokens(directory: Path, manifest: dict[str, Any], split: str) -> Iterator[tuple[str, int, Tokens]]:
    """(shard, first, tokens) of consecutive parts of a split."""
    for name in manifest["splits"][split]["files"]:
        for first, block in blocks(read_shard(directory / name)):
            yield name, first, block


def vocabulary(directory: Path, manifest: dict[str, Any]) -> str:
    """No id lies beyond the vocabulary."""
    for split in SPLITS:
        for name, first, block in _tokens(directory, manifest, split):
            if int(block.max()) >= manifest["vocab_size"]:
                at = int(np.argmax(block >= manifest["vocab_size"]))
                raise UserError(
                    f"token {first + at} of {name} has the id {block[at]}, the vocabulary ends at "
                    f"{manifest['vocab_size']}."
                )
    return f"every id is below {manifest['vocab_size']}"


def bos_count(directory: Path, manifest: dict[str, Any]) -> str:
    """There is one BOS for each document."""
    for split in SPLITS:
        bos = manifest["bos_id"]
        count = sum(int(np.count_nonzero(block == bos)) for _, _, block in _tokens(directory, manifest, split))
        if count != manifest["splits"][split]["documents"]:
            raise UserError(
                f"the {split} split has {count} BOS tokens for {manifest['splits'][split]['documents']} documents."
            )
    return "one BOS a document"


def empty(directory: Path, manifest: dict[str, Any]) -> str:
    """No document is empty."""
    for split in SPLITS:
        last = False  # Whether the token before the block is a BOS.
        for name, first, block in _tokens(directory, manifest, split):
            is_bos = np.concatenate([[last], block == manifest["bos_id"]])
            for at in np.flatnonzero(is_bos[1:] & is_bos[:-1]):
                raise UserError(
                    f"the document before token {first + at} of {name} is empty: two BOS follow each other."
                )
            last = bool(is_bos[-1])
        if last:
            raise UserError(f"the last document of the {split} split is empty: it ends with a BOS.")
    return "every document has a token"


def starts(directory: Path, manifest: dict[str, Any]) -> str:
    """Each document begins with BOS where the index says."""
    for split in SPLITS:
        starts, offset = DocumentIndex(directory, split).starts, 0
        for name, _, block in _tokens(directory, manifest, split):
            found = np.flatnonzero(block == manifest["bos_id"]) + offset
            expected = starts[np.searchsorted(starts, offset) : np.searchsorted(starts, offset + len(block))]
            if not np.array_equal(found, expected):
                raise UserError(f"{name}: a document does not begin where the index says it does (BOS is missing).")
            offset += len(block)
    return "every document begins with BOS where the index says"

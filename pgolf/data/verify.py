"""Verification of a prepared directory: everything the manifest says is computed again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.bytes import ByteTable, check_document_bytes
from pgolf.data.documents import in_validation
from pgolf.data.manifest import (
    MANIFEST,
    TOKENIZER,
    Entry,
    check_sizes,
    read_documents,
    read_manifest,
    refuse_overlap,
)
from pgolf.data.shards import Tokens, iterate_documents, read_shard
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import UserError
from pgolf.files import sha256_bytes, sha256_file

ZERO_RUN = 1024  # Consecutive padding tokens that no text gives but unwritten storage does.


@dataclass(frozen=True)
class Check:
    """One line of a verification: what was checked, whether it held, the figures or the fault."""

    name: str
    passed: bool
    detail: str


def verify(directory: Path) -> list[Check]:
    """Check a prepared directory completely; reads and decodes every token.

    Every check is made that can be made: after a damaged manifest there is only that one result.
    """
    checks: list[Check] = []

    def attempt(name: str, check: Callable[[], str]) -> bool:
        try:
            checks.append(Check(name, True, check()))
        except (UserError, KeyError, TypeError, ValueError, IndexError, OSError) as error:
            checks.append(Check(name, False, str(error)))
        return checks[-1].passed

    if not attempt("manifest", lambda: f"digest {read_manifest(directory)['digest'][:16]}"):
        return checks
    manifest = read_manifest(directory)
    attempt("files", lambda: _files(directory, manifest))
    attempt("shard headers", lambda: _headers(directory, manifest))
    attempt("shards written", lambda: _written(directory, manifest))
    if not attempt("document list", lambda: f"{len(read_documents(directory))} documents"):
        return checks
    if not attempt("tokenizer", lambda: _tokenizer(directory, manifest)):
        return checks
    entries = read_documents(directory)
    tokenizer = Tokenizer.load(directory / TOKENIZER)
    attempt("disjoint splits", lambda: _disjoint(entries, manifest))
    for split_name in ("train", "val"):
        own = [entry for entry in entries if entry.split == split_name]
        files = [directory / name for name in manifest["splits"][split_name]["files"]]
        check = partial(_documents, own, files, manifest, split_name, tokenizer)
        attempt(f"{split_name} documents", check)
    attempt("byte sidecar", lambda: _sidecar(directory, manifest, entries, tokenizer))
    return checks


def _files(directory: Path, manifest: dict[str, Any]) -> str:
    for name, expected in manifest["files"].items():
        if sha256_file(directory / name) != expected["sha256"]:
            raise UserError(f"{directory / name} does not have the SHA-256 of its manifest.")
    unlisted = {path.name for path in directory.iterdir()} - set(manifest["files"]) - {MANIFEST}
    if unlisted:
        raise UserError(f"{directory} holds files its manifest does not list: {sorted(unlisted)}.")
    return f"{len(manifest['files'])} files have the SHA-256 of the manifest"


def _headers(directory: Path, manifest: dict[str, Any]) -> str:
    check_sizes(directory, manifest)
    return "sizes agree with the headers and with the manifest"


def _written(directory: Path, manifest: dict[str, Any]) -> str:
    names = [name for name in manifest["files"] if name.endswith(".bin")]
    for name in names:
        nonzero = np.flatnonzero(read_shard(directory / name))
        edges = np.concatenate([[-1], nonzero])
        if len(edges) > 1 and int(np.diff(edges).max()) > ZERO_RUN:
            raise UserError(f"the shard {directory / name} holds a run of more than {ZERO_RUN} zeros.")
    return f"no run of {ZERO_RUN} zeros in {len(names)} shards"


def _tokenizer(directory: Path, manifest: dict[str, Any]) -> str:
    tokenizer = Tokenizer.load(directory / TOKENIZER)
    if tokenizer.sha256 != manifest["tokenizer_sha256"]:
        raise UserError(f"{directory / TOKENIZER} is not the tokenizer of the manifest.")
    if tokenizer.vocab_size != manifest["vocab_size"]:
        raise UserError(
            f"{directory / TOKENIZER} has {tokenizer.vocab_size} ids, the manifest says {manifest['vocab_size']}."
        )
    return f"{tokenizer.vocab_size} ids, SHA-256 {tokenizer.sha256[:16]}"


def _disjoint(entries: list[Entry], manifest: dict[str, Any]) -> str:
    refuse_overlap(entries)
    for entry in entries:
        if (entry.split == "val") != in_validation(entry.sha256, manifest["val_fraction"]):
            raise UserError(f"document {entry.name!r} is in the {entry.split} split against the split rule.")
    return "no text in both splits, every document on the side of its hash"


def _documents(
    entries: list[Entry],
    files: list[Path],
    manifest: dict[str, Any],
    split_name: str,
    tokenizer: Tokenizer,
) -> str:
    """BOS count, no empty document, and each document's hash and bytes by all three counts."""
    totals = manifest["splits"][split_name]
    bos_id = manifest["bos_id"]
    bos_count = sum(int((read_shard(path) == bos_id).sum()) for path in files)
    if not len(entries) == bos_count == totals["documents"]:
        raise UserError(
            f"{bos_count} BOS tokens, {len(entries)} listed documents and {totals['documents']} in the manifest differ."
        )
    table = ByteTable.of(tokenizer)
    for entry, ids in zip(entries, iterate_documents(files, bos_id), strict=True):
        if len(ids) == 0 or len(ids) != entry.tokens:
            raise UserError(f"document {entry.name!r} has {len(ids)} tokens, the list says {entry.tokens}.")
        _check_document(entry, ids, table, tokenizer, bos_id)
    total = sum(entry.bytes for entry in entries)
    if total != totals["bytes"]:
        raise UserError(f"the documents have {total} bytes, the manifest says {totals['bytes']}.")
    return f"{bos_count} documents, {total} bytes by every count"


def _check_document(entry: Entry, ids: Tokens, table: ByteTable, tokenizer: Tokenizer, bos_id: int) -> None:
    if int(ids.max()) >= tokenizer.vocab_size:
        raise UserError(
            f"document {entry.name!r} has the id {int(ids.max())}, the vocabulary ends at {tokenizer.vocab_size}."
        )
    text = tokenizer.decode(ids.tolist()).encode()
    charged = int(table.stream_bytes(np.concatenate([[bos_id], ids])).sum())
    check_document_bytes(entry.name, entry.bytes, len(text), charged)
    if sha256_bytes(text) != entry.sha256:
        raise UserError(f"document {entry.name!r} does not have the SHA-256 of the list.")


def _sidecar(directory: Path, manifest: dict[str, Any], entries: list[Entry], tokenizer: Tokenizer) -> str:
    tokens = _concatenate(directory, manifest["splits"]["val"]["files"])
    stored = _concatenate(directory, manifest["byte_files"])
    if len(tokens) != len(stored):
        raise UserError(f"{len(tokens)} validation tokens have {len(stored)} byte counts.")
    expected = ByteTable.of(tokenizer).stream_bytes(tokens)
    wrong = np.flatnonzero(expected != stored)
    if len(wrong):
        index = int(wrong[0])
        raise UserError(
            f"validation token {index} stands for {expected[index]} bytes, the sidecar says {stored[index]}."
        )
    recorded = sum(entry.bytes for entry in entries if entry.split == "val")
    if int(stored.astype(np.int64).sum()) != recorded:
        raise UserError(f"the sidecar sums to {int(stored.sum())} bytes, the originals have {recorded}.")
    return f"{len(stored)} counts sum to the {recorded} bytes of the originals"


def _concatenate(directory: Path, names: list[str]) -> Tokens:
    return np.concatenate([read_shard(directory / name) for name in names])

"""What a prepared directory holds: manifest.json, the tokenizer, the shards, and an index of the documents.

Keys of the manifest (format 2):
    name, recipe: what was asked for (DataConfig.recipe()); downloaded data have an `origin` instead of a recipe.
    front_end: description of transform and tokenizer (FrontEnd.description()), with hashes.
    vocab_size, bos_id, lossless: whether the tokens decode to exactly the original text.
    byte_accounting: "sidecar" (byte_files hold the bytes of each validation token) or "lut" (a table per id).
    split: the rule ({"rule": sentence, "val_docs" or "val_fraction": value}).
    left_out: how many documents were left out for each reason.
    splits: per split `documents`, `tokens` (with one BOS a document), `bytes` (UTF-8 length of the originals),
        `charged` (sum over the tokens), `first_document` and `last_document` (numbers in the order of the source,
        counting what was kept), `no_token_left`, and its `files`.
    byte_files: the shards of byte counts of the validation split.
    files: size and SHA-256 of every file.
    digest: SHA-256 over all of this.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pgolf.console import Console, Silent
from pgolf.data.index import DocumentIndex
from pgolf.data.shards import shard_length
from pgolf.data.verification.agreement import contradictions
from pgolf.errors import UserError
from pgolf.files import read_json, sha256_bytes, sha256_file, write_json

FORMAT = 2
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.model"
SPLITS = ("train", "val")
KINDS: dict[str, type] = {
    "name": str,
    "front_end": dict,
    "vocab_size": int,
    "bos_id": int,
    "lossless": bool,
    "byte_accounting": str,
    "split": dict,
    "left_out": dict,
    "splits": dict,
    "byte_files": list,
    "files": dict,
}
COUNTS = ("documents", "tokens", "bytes", "charged", "first_document", "last_document", "no_token_left")


def canonical_digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order and layout."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def split_totals(directory: Path, split: str, files: Sequence[Path], charged: int | None = None) -> dict[str, Any]:
    """Counts of one split out of its index; `tokens` includes one BOS a document.

    `charged` is the sum over the tokens; None when each document was checked to be charged its UTF-8 length.
    """
    rows = DocumentIndex(directory, split).rows
    num_bytes = int(rows["bytes"].sum())
    return {
        "documents": len(rows),
        "tokens": int(rows["tokens"].sum()) + len(rows),
        "bytes": num_bytes,
        "charged": num_bytes if charged is None else charged,
        "files": [path.name for path in files],
    }


def hash_files(directory: Path, names: Sequence[str], console: Console) -> dict[str, str]:
    """SHA-256 of files, several at a time (hashing leaves the interpreter free)."""
    sizes = [(directory / name).stat().st_size for name in names]
    found: dict[str, str] = {}
    done = 0
    with console.task("Hashing files (MB)", sum(sizes) // 10**6) as task, ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda name: sha256_file(directory / name), names)
        for name, size, digest in zip(names, sizes, hashes, strict=True):
            found[name] = digest
            done += size
            task.update(done // 10**6)
    return found


def write_manifest(directory: Path, content: dict[str, Any], console: Console | None = None) -> dict[str, Any]:
    """Write manifest.json: `content`, hash and size of every file, and a digest over it all."""
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST)
    hashes = hash_files(directory, names, console or Silent())
    files = {name: {"bytes": (directory / name).stat().st_size, "sha256": hashes[name]} for name in names}
    manifest = {"format": FORMAT} | content | {"files": files}
    manifest["digest"] = canonical_digest(manifest)
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read manifest.json; UserError when it is missing, edited or of another format."""
    path = directory / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a manifest of format {FORMAT}; delete {directory} and prepare it again.")
    content = {key: value for key, value in manifest.items() if key != "digest"}
    if canonical_digest(content) != manifest.get("digest"):
        raise UserError(
            f"{path} does not match its own digest: it was edited or damaged; delete {directory} and prepare it again."
        )
    if (fault := shape_fault(manifest)) is not None:
        raise UserError(f"{path} was edited: {fault}; delete {directory} and prepare it again.")
    return manifest


def shape_fault(manifest: dict[str, Any]) -> str | None:
    """What a manifest lacks, or holds as another kind of value than is written, in words; None when it is sound."""
    for key, kind in KINDS.items():
        if not isinstance(manifest.get(key), kind):
            return f"its {key} is no {kind.__name__}"
    for name, entry in manifest["files"].items():
        if "/" in name or not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            return f"the file {name!r} has no size or no hash"
    listed: list[Any] = list(manifest["byte_files"])
    for split in SPLITS:
        totals = manifest["splits"].get(split)
        if not isinstance(totals, dict) or not isinstance(totals.get("files"), list) or not totals["files"]:
            return f"the split {split} has no files"
        if not all(type(totals.get(key)) is int and totals[key] >= 0 for key in COUNTS):
            return f"the split {split} lacks one of the numbers {', '.join(COUNTS)}"
        listed += totals["files"]
    absent = [name for name in listed if not isinstance(name, str) or name not in manifest["files"]]
    return f"the shard {absent[0]!r} is not among its files" if absent else None


def check_agreement(directory: Path, manifest: dict[str, Any]) -> None:
    """UserError when the manifest lacks a part or contradicts itself."""
    try:
        found = contradictions(manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory / MANIFEST} was edited: a part is missing or of another kind ({error!r}); "
            f"delete {directory} and prepare it again."
        ) from error
    if found:
        raise UserError(
            f"{directory / MANIFEST} contradicts itself: it was edited ({'; '.join(found)}); delete {directory} and "
            "prepare it again."
        )


def check_files(directory: Path, manifest: dict[str, Any]) -> None:
    """UserError names the first file that is missing or does not have the size of the manifest."""
    for name, expected in manifest["files"].items():
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing; delete {directory} and prepare it again.")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(
                f"{path} has {size} bytes, its manifest says {expected['bytes']}; delete "
                f"{directory} and prepare it again."
            )


def check_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """The cheap check: every file has the size of the manifest, every shard header agrees.

    UserError names the first file that does not.
    """
    check_files(directory, manifest)
    for split, totals in manifest["splits"].items():
        tokens = sum(shard_length(directory / name) for name in totals["files"])
        if tokens != totals["tokens"]:
            raise UserError(
                f"the {split} shards of {directory} hold {tokens} tokens, the manifest says {totals['tokens']}."
            )


def check_tokenizer(directory: Path, manifest: dict[str, Any]) -> None:
    """UserError when the tokenizer file is not the one that the shards were written with."""
    listed = manifest["files"].get(TOKENIZER)
    if listed is None:
        return
    found = sha256_file(directory / TOKENIZER)
    if found != listed["sha256"] or found != manifest["front_end"]["tokenizer"]["sha256"]:
        raise UserError(
            f"{directory / TOKENIZER} is not the tokenizer of its manifest (its SHA-256 differs): ids would mean "
            f"other text. Put the right file back, or delete {directory} and prepare it again."
        )

"""What a prepared directory holds: manifest.json, documents.jsonl, the tokenizer and the shards."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pgolf.data.shards import shard_length
from pgolf.errors import UserError
from pgolf.files import read_json, sha256_bytes, sha256_file, write_bytes, write_json

FORMAT = 1
MANIFEST, DOCUMENTS, TOKENIZER = "manifest.json", "documents.jsonl", "tokenizer.model"


@dataclass(frozen=True)
class Entry:
    """One line of documents.jsonl, in the order of the shards: one document.

    Attributes:
        split: "train" or "val".
        name: as its source named it.
        sha256: of its UTF-8 text.
        bytes: UTF-8 length of the original text, recorded when it was gathered.
        tokens: token count without BOS.
    """

    split: str
    name: str
    sha256: str
    bytes: int
    tokens: int


def canonical_digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of key order and layout."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def write_documents(directory: Path, entries: Iterable[Entry]) -> None:
    """Write documents.jsonl."""
    lines = [json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries]
    write_bytes(directory / DOCUMENTS, "".join(lines).encode())


def read_documents(directory: Path) -> list[Entry]:
    """Read documents.jsonl; UserError names the file and line that cannot be read."""
    path = directory / DOCUMENTS
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if line:
            try:
                entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number} is damaged ({error}); delete {directory} and prepare it again."
                ) from error
    return entries


def refuse_overlap(entries: Sequence[Entry]) -> None:
    """UserError when one text is both a training and a validation document."""
    training = {entry.sha256: entry.name for entry in entries if entry.split == "train"}
    for entry in entries:
        if entry.split == "val" and entry.sha256 in training:
            raise UserError(
                f"validation document {entry.name!r} is also the training document "
                f"{training[entry.sha256]!r} (SHA-256 {entry.sha256[:16]}...): a score on it would "
                "be worthless; remove one of them."
            )


def split_totals(entries: Sequence[Entry], split: str, files: Sequence[Path]) -> dict[str, Any]:
    """Counts of one split; `tokens` includes one BOS a document."""
    own = [entry for entry in entries if entry.split == split]
    return {
        "documents": len(own),
        "tokens": sum(entry.tokens + 1 for entry in own),
        "bytes": sum(entry.bytes for entry in own),
        "files": [path.name for path in files],
    }


def write_manifest(directory: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json: `content`, hash and size of every file, and a digest over it all."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
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
    return manifest


def check_sizes(directory: Path, manifest: dict[str, Any]) -> None:
    """The cheap check: every file has the size of the manifest, every shard header agrees.

    UserError names the first file that does not.
    """
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
    for split, totals in manifest["splits"].items():
        tokens = sum(shard_length(directory / name) for name in totals["files"])
        if tokens != totals["tokens"]:
            raise UserError(
                f"the {split} shards of {directory} hold {tokens} tokens, the manifest says {totals['tokens']}."
            )

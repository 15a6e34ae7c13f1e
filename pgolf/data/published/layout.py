"""Where the published exports keep the files of a variant, from the manifest.json of their repository.

<root>/manifest.json
<root>/datasets/fineweb10B_<variant>/fineweb_{train,val,val_bytes}_%06d.bin     (val_bytes for CaseOps alone)
<root>/tokenizers/<file>
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError


@dataclass(frozen=True)
class Layout:
    """The files of one variant.

    Attributes:
        folder: of the shards, in the repository.
        tokenizer: path of the tokenizer's file in the repository; None for bytes, which need none.
        train_shards, val_shards: how many there are.
        vocab_size: number of ids, None where the manifest does not say.
    """

    folder: str
    tokenizer: str | None
    train_shards: int
    val_shards: int
    vocab_size: int | None

    def train_files(self, count: int) -> list[str]:
        """Names of the first `count` training shards."""
        return [f"fineweb_train_{index:06d}.bin" for index in range(count)]

    def val_files(self, kind: str = "val") -> list[str]:
        """Names of the validation shards; kind "val_bytes": of their byte counts."""
        return [f"fineweb_{kind}_{index:06d}.bin" for index in range(self.val_shards)]


def read_layout(manifest: Any, root: str, variant: str, where: str) -> Layout:
    """Find a variant in a repository's manifest; other keys are not read.

    Args:
        manifest: the parsed JSON.
        root: the folder in the repository that holds manifest.json.
        where: the manifest's name for error messages.

    UserError says which key is missing, or which variants there are.
    """
    dataset = f"fineweb10B_{variant}"
    entry = _named(_list(manifest, "datasets", where), dataset, f"{where}: there is no data set", "data.variant")
    stats = entry.get("stats")
    if not isinstance(stats, dict):
        raise UserError(f"{where}: the data set {dataset} has no stats, which would say how many shards it has.")
    if entry.get("bos_id", BOS_ID) != BOS_ID:
        raise UserError(f"{where}: {dataset} begins documents with id {entry['bos_id']}; only id {BOS_ID} can be read.")
    return Layout(
        folder=_join(root, "datasets", dataset),
        tokenizer=_tokenizer(manifest, entry, root, where),
        train_shards=_count(stats, "files_train", dataset, where),
        val_shards=_count(stats, "files_val", dataset, where),
        vocab_size=_count(entry, "vocab_size", dataset, where) if "vocab_size" in entry else None,
    )


def train_files(directory: Path) -> list[Path]:
    """The training shards, in order."""
    return sorted(directory.glob("fineweb_train_*.bin"))


def val_files(directory: Path) -> list[Path]:
    """The validation shards, in order; the published pattern matches the byte counts too."""
    return [path for path in sorted(directory.glob("fineweb_val_*.bin")) if "_bytes_" not in path.name]


def sidecar_name(path: Path) -> Path:
    """The byte counts beside a validation shard."""
    return path.with_name(path.name.replace("_val_", "_val_bytes_"))


def manifest_path(root: str) -> str:
    """Path of the manifest in the repository."""
    return _join(root, "manifest.json")


def _tokenizer(manifest: Any, entry: dict[str, Any], root: str, where: str) -> str | None:
    name = entry.get("tokenizer_name")
    if not isinstance(name, str):
        raise UserError(f"{where}: the data set {entry['name']} has no tokenizer_name.")
    tokenizer = _named(_list(manifest, "tokenizers", where), name, f"{where}: there is no tokenizer", "its datasets")
    if "byte" in str(tokenizer.get("kind", "")).lower():
        return None
    path = tokenizer.get("model_path")
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
        raise UserError(f"{where}: the tokenizer {name} has no model_path inside the repository (it has {path!r}).")
    return _join(root, path)


def _list(manifest: Any, key: str, where: str) -> list[dict[str, Any]]:
    found = manifest.get(key) if isinstance(manifest, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{where} has no list of {key}: it is not the manifest of a published export.")
    return found


def _named(entries: Iterable[dict[str, Any]], name: str, missing: str, key: str) -> dict[str, Any]:
    named = {str(entry.get("name")): entry for entry in entries}
    if name not in named:
        raise UserError(f"{missing} {name!r} (see {key}); it has {', '.join(sorted(named)) or 'none'}.")
    return named[name]


def _count(values: dict[str, Any], key: str, dataset: str, where: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key} of the data set {dataset} is {value!r}, a number of at least 1 is expected.")
    return value


def _join(*parts: str) -> str:
    return "/".join(part.strip("/") for part in parts if part.strip("/"))

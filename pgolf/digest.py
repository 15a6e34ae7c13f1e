"""What makes two runs the same: the semantic digest of a resolved configuration.

Absent parts, tracking, paths, launching and numbers of workers do not count, so an option that is absent changes no
digest. The group digest leaves out the seed as well: the runs of one group are repetitions.
"""

import json
from typing import Any

from pgolf.files import sha256_bytes

ABSENT_TARGET = "pgolf.absent.absent"
BOOKKEEPING = frozenset(
    {
        "name",
        "force",
        "fail_fast",
        "paths",
        "track",
        "launch",
        "hydra",
        "scale",
        "size",
        "experiment",
        "allow_targets",
        "fused",
    }
)
DATA_BOOKKEEPING = frozenset({"workers", "connections"})
TRAIN_BOOKKEEPING = frozenset({"early_stop", "diagnostics"})  # what only watches: the run is what it would have been
SHORT = 8  # digits in the name of a directory


def is_absent(node: Any) -> bool:
    """Whether a node of a plain configuration names the absent part."""
    return isinstance(node, dict) and node.get("_target_") == ABSENT_TARGET


def semantic(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the result."""
    kept = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    if not kept.get("compile_scoring"):  # off is absent; on rounds otherwise
        kept.pop("compile_scoring", None)
    if isinstance(kept.get("data"), dict):
        kept["data"] = {key: value for key, value in kept["data"].items() if key not in DATA_BOOKKEEPING}
    if isinstance(kept.get("train"), dict):
        kept["train"] = {key: value for key, value in kept["train"].items() if key not in TRAIN_BOOKKEEPING}
    pruned: dict[str, Any] = _prune(kept)
    return pruned


def digest(config: dict[str, Any]) -> str:
    """SHA-256 (64 hexadecimal digits) of the canonical JSON of the semantic part."""
    return _hash(semantic(config))


def recipe_of(config: dict[str, Any]) -> dict[str, Any]:
    """The semantic part without the seed, nor nested `seed` keys that repeat it."""
    recipe: dict[str, Any] = _without_seed(semantic(config), config.get("seed"))
    return recipe


def group_digest(config: dict[str, Any]) -> str:
    """The digest of `recipe_of`: equal for two runs that differ by their seed alone."""
    return _hash(recipe_of(config))


def config_hash(config: dict[str, Any]) -> str:
    """SHA-256 of the whole resolved configuration, bookkeeping included."""
    return _hash(config)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(text.encode())


def _prune(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _prune(value) for key, value in node.items() if not is_absent(value)}
    if isinstance(node, list | tuple):
        return [_prune(value) for value in node]
    if isinstance(node, float) and node.is_integer():
        return int(node)  # 1 and 1.0 are the same setting
    return node


def _without_seed(node: Any, seed: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_seed(value, seed) for key, value in node.items() if not (key == "seed" and value == seed)}
    if isinstance(node, list):
        return [_without_seed(value, seed) for value in node]
    return node


def run_name(config: dict[str, Any]) -> str:
    """`<name>-<group digest 8>-seed<seed>`: the directory of a run below its parent."""
    name, group = _safe(config.get("name") or "default"), group_digest(config)[:SHORT]
    return f"{name}-{group}-seed{config.get('seed')}"


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in name)

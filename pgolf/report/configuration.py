"""What two configurations have in common: flat keys, the group digest, the exact difference."""

import json
from collections.abc import Mapping
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
    }
)
MISSING = "(absent)"


def recipe_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved configuration that decides the result, without the seed.

    Dropped: bookkeeping at the root (name, paths, tracking, launch, ...), nodes that name the
    absent part, and keys called `seed` that repeat the root seed.
    """
    seed = config.get("seed")
    kept = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    pruned = _prune(kept, seed)
    return pruned if isinstance(pruned, dict) else {}


def _prune(node: Any, seed: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            str(key): _prune(value, seed)
            for key, value in node.items()
            if not _is_absent(value) and not (key == "seed" and value == seed)
        }
    if isinstance(node, list | tuple):
        return [_prune(value, seed) for value in node]
    if isinstance(node, float) and node.is_integer():
        return int(node)  # 1 and 1.0 are the same setting
    return node


def _is_absent(node: Any) -> bool:
    return isinstance(node, Mapping) and node.get("_target_") == ABSENT_TARGET


def group_digest(config: Mapping[str, Any]) -> str:
    """64 hexadecimal digits that are equal for two runs which differ by their seed alone.

    The same rule as the one that names run directories (a test holds the two together).
    """
    text = json.dumps(recipe_of(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256_bytes(text.encode())


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaf values; a list is one leaf, an empty mapping is a leaf too."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def difference(configs: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """For each dotted key whose values differ: one printable value per configuration."""
    flat = [flatten(recipe_of(config)) for config in configs]
    keys = sorted(set().union(*flat)) if flat else []
    table = {key: [_printable(one[key]) if key in one else MISSING for one in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def _printable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

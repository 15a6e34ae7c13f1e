"""What two configurations have in common: flat keys, the group digest, the exact difference."""

import json
from collections.abc import Mapping
from typing import Any

from pgolf.digest import recipe_of

MISSING = "(absent)"


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


def difference(configs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """For each dotted key whose values differ: one printable value per configuration."""
    flat = [flatten(recipe_of(config)) for config in configs]
    keys = sorted(set().union(*flat)) if flat else []
    table = {key: [_printable(one[key]) if key in one else MISSING for one in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def _printable(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

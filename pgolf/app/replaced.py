"""What an experiment sets on a part that the command line replaces has nothing to act on.

`experiment=pr1855 ttt=none` is the experiment without test-time training: the rank that it gives to adapters goes with
them. What another part takes too is kept, and what is typed on the command line is never dropped.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from pgolf.app.signature import Signature, TargetProblem, accepts, is_node, item_of_mapping, locate, signature_of

Tree = dict[str, Any]


def drop_unheard(
    config: Tree, experiment: str, folders: Iterable[Path], overrides: list[str], groups: set[str]
) -> None:
    """Take out of `config`, in place, what `experiment` set on parts that `overrides` replaced and that the new ones do
    not take.

    folders: where experiments are looked for, in order. overrides: the command line. groups: the keys of Hydra's
    choices, such as `ttt` or `quant/scheme@quant.gate`.
    """
    typed = [one.partition("=")[0].lstrip("+~") for one in overrides]
    packages = {_package(key) for key in typed if key in groups and key != "experiment"}
    if not packages:
        return
    body = _body(experiment, list(folders), ())
    keys = {key for key in typed if key not in groups}
    for package in packages:
        node, wanted = _below(config, package), _below(body, package)
        if isinstance(node, dict) and isinstance(wanted, dict):
            _drop(node, wanted, f"{package}.", keys, Any)


def _package(group: str) -> str:
    """Where a group's option lands: after the @, else the group itself."""
    path, _, package = group.partition("@")
    return package or path.replace("/", ".")


def _body(name: str, folders: list[Path], seen: tuple[str, ...]) -> Tree:
    """The keys that an experiment and those that it builds on set; what cannot be read sets none (Hydra says why)."""
    path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    content = yaml.safe_load(path.read_text("utf-8")) if path is not None and name not in seen else None
    if not isinstance(content, dict):
        return {}
    merged: Tree = {}
    for parent in content.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            _merge(merged, _body(parent, folders, (*seen, name)))
    _merge(merged, content)
    return merged


def _merge(into: Tree, more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _below(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _drop(node: Tree, wanted: Tree, prefix: str, keys: set[str], item: Any) -> None:
    """Drop from `node` the keys of `wanted` that it does not take. item: what the values of a plain mapping must be."""
    signature = _signature(node)
    for name, setting in wanted.items():
        key = f"{prefix}{name}"
        if name not in node or any(f"{one}.".startswith(f"{key}.") for one in keys):
            continue
        if signature is not None and name not in signature.arguments and not signature.open_ended:
            del node[name]
            continue
        value, expected = node[name], item if signature is None else signature.arguments.get(name, Any)
        if not isinstance(value, dict) or not isinstance(setting, dict):
            continue
        items = _items(expected)
        if is_node(value) or items is not None:
            _drop(value, setting, f"{key}.", keys, items)
        elif not accepts(expected, value):
            del node[name]  # settings of a part that is gone


def _signature(node: Tree) -> Signature | None:
    """What a node takes; None for a plain mapping, and for a target that is wrong, which is told elsewhere."""
    if not is_node(node):
        return None
    try:
        return signature_of(locate(node["_target_"]))
    except TargetProblem:
        return None


def _items(annotation: Any) -> Any:
    """The annotation of the values of a mapping, also where the mapping may be None; None for others."""
    choices = (annotation, *get_args(annotation))
    return next((found for one in choices if (found := item_of_mapping(one)) is not None), None)

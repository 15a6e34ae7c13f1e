"""What an experiment sets on a part that is then replaced has nothing to act on.

`experiment=pr1855 ttt=none` is the experiment without test-time training: the rank that it gives to adapters goes with
them. So it is where an experiment builds on another one and chooses another part. What the new part takes too is kept,
and what is set or typed after the choice is never dropped.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from pgolf.app.signature import Signature, TargetProblem, accepts, is_node, item_of_mapping, locate, signature_of

Tree = dict[str, Any]


@dataclass(frozen=True)
class Layer:
    """An experiment file, or the command line: what it sets, all its keys, and the packages whose part it chooses."""

    body: Tree
    keys: set[str]
    chosen: set[str]


def drop_unheard(
    config: Tree, experiment: str, folders: Iterable[Path], overrides: list[str], groups: set[str]
) -> None:
    """Take out of `config`, in place, what `experiment` and those that it builds on set on parts that a later one of
    them, or the command line, replaced, and that the new parts do not take.

    folders: where experiments are looked for, in order. overrides: the command line. groups: the keys of Hydra's
    choices, such as `ttt` or `quant/scheme@quant.gate`.
    """
    typed = {one.partition("=")[0].lstrip("+~") for one in overrides}
    command_line = Layer({}, typed - groups, {package_of(key) for key in typed & groups if key != "experiment"})
    layers = [*_experiments(experiment, list(folders), ()), command_line]
    before: Tree = {}
    for index, layer in enumerate(layers):
        later = set().union(*(one.keys for one in layers[index:]))
        for package in layer.chosen:
            node, wanted = _below(config, package), _below(before, package)
            if isinstance(node, dict) and isinstance(wanted, dict):
                _drop(node, wanted, f"{package}.", later, Any)
        _merge(before, layer.body)


def package_of(group: str) -> str:
    """Where a group's option lands: after the @, else the group itself."""
    path, _, package = group.partition("@")
    return package or path.replace("/", ".")


def _experiments(name: str, folders: list[Path], seen: tuple[str, ...]) -> list[Layer]:
    """The layers of an experiment, those that it builds on first; none for what cannot be read (Hydra says why)."""
    path = next((folder / f"{name}.yaml" for folder in folders if (folder / f"{name}.yaml").is_file()), None)
    content = yaml.safe_load(path.read_text("utf-8")) if path is not None and name not in seen else None
    if not isinstance(content, dict):
        return []
    defaults = content.pop("defaults", [])
    parents = [one for one in defaults if isinstance(one, str) and one != "_self_"]
    replaced = [key.removeprefix("override ") for one in defaults if isinstance(one, dict) for key in one]
    chosen = {package_of(group.strip().lstrip("/")) for group in replaced}
    above = [layer for parent in parents for layer in _experiments(parent, folders, (*seen, name))]
    return [*above, Layer(content, set(leaves(content)), chosen)]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a tree's values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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

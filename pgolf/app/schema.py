"""The validator: every `_target_` node of a composed configuration against the signature it names.

Hydra lets a mistyped key in a group file, in an experiment or behind `+` pass silently; here it is
a problem with its dotted key. Nothing is constructed and, but for the targets, nothing is imported.
"""

import math
import sys
import typing
from dataclasses import dataclass
from typing import Any, TypedDict

from pgolf.app.signature import (
    PACKAGE,
    Signature,
    TargetProblem,
    accepts,
    accepts_node,
    allow,
    describe,
    is_node,
    item_of_mapping,
    locate,
    nearest,
    signature_of,
)

NODE_WORDS = frozenset({"_target_", "_partial_"})
NO_VALUE = object()
RESERVED = frozenset(sys.stdlib_module_names) | {"pgolf", "torch"}


@dataclass(frozen=True)
class Problem:
    """One reason to refuse a configuration. `value` is NO_VALUE when a key is missing."""

    key: str
    value: Any
    message: str


class Paths(TypedDict):
    """Where things lie; absolute after composition."""

    data: str
    runs: str


def run(
    *,
    seed: int,
    name: str | None,
    force: bool,
    fail_fast: bool,
    kernels: str,
    fused: str | list[str] = "auto",
    compile_scoring: bool = False,
    paths: Paths,
    data: object,
    model: object,
    optim: object,
    train: object,
    quant: object,
    ttt: object,
    audit: object,
    track: object,
    launch: object,
    allow_targets: list[str] | None = None,
) -> None:
    """The keys at the root of a configuration, and their types; never called."""


def check(config: dict[str, Any]) -> list[Problem]:
    """All problems of a resolved configuration, in the order of its keys."""
    allow(config.get("allow_targets"))
    problems = _check_arguments("", config, signature_of(run), "the configuration")
    problems += _check_packages(config.get("allow_targets"))
    problems += _check_parts(config)
    return problems + _walk("", config)


def _check_parts(config: dict[str, Any]) -> list[Problem]:
    """What the root declares as an object must be a node: a plain value in its place would be found out when the run
    comes to that part, after training."""
    parts = [name for name, kind in typing.get_type_hints(run).items() if kind is object and name in config]
    return [
        Problem(name, config[name], "expected a node with a _target_; set its keys one by one, or choose an option")
        for name in parts
        if not is_node(config[name])
    ]


def _check_packages(packages: Any) -> list[Problem]:
    """What `allow_targets` names must be packages, and others than those that are allowed anyway."""
    if not isinstance(packages, list):
        return []
    wrong = [name for name in packages if not PACKAGE.fullmatch(str(name)) or str(name).split(".")[0] in RESERVED]
    message = "expected names of your own packages or modules, such as my_package (not pgolf, torch or Python's own)"
    return [Problem("allow_targets", wrong, message)] if wrong else []


def _walk(key: str, value: Any) -> list[Problem]:
    problems = _check_node(key, value) if is_node(value) else []
    if isinstance(value, float) and math.isnan(value):
        problems.append(Problem(key, value, "not a number: comparisons with it are all false, so no limit would hold"))
    if isinstance(value, dict):
        children = [(f"{key}.{name}" if key else str(name), child) for name, child in value.items()]
    elif isinstance(value, list):
        children = [(f"{key}[{index}]", child) for index, child in enumerate(value)]
    else:
        children = []
    for child_key, child in children:
        problems += _walk(child_key, child)
    return problems


def _check_node(key: str, node: dict[str, Any]) -> list[Problem]:
    try:
        signature = signature_of(locate(node["_target_"]))
    except TargetProblem as problem:
        return [Problem(f"{key}._target_", node["_target_"], str(problem))]
    problems = [
        Problem(
            f"{key}.{name}",
            node[name],
            "a node has only _target_ and _partial_ besides its arguments",
        )
        for name in node
        if str(name).startswith("_") and name not in NODE_WORDS
    ]
    arguments = {name: value for name, value in node.items() if not str(name).startswith("_")}
    problems += _check_partial(key, node, signature)
    return problems + _check_arguments(key, arguments, signature, node["_target_"])


def _check_partial(key: str, node: dict[str, Any], signature: Signature) -> list[Problem]:
    partial = node.get("_partial_", False)
    if signature.runtime and partial is not True:
        waits = ", ".join(signature.runtime)
        message = f"{node['_target_']} gets {waits} at run time: its node needs `_partial_: true`"
        return [Problem(f"{key}._partial_", node.get("_partial_", NO_VALUE), message)]
    if not signature.runtime and "_partial_" in node and partial is not False:
        message = f"{node['_target_']} gets nothing at run time: remove `_partial_`"
        return [Problem(f"{key}._partial_", partial, message)]
    return []


def _check_arguments(key: str, values: dict[str, Any], signature: Signature, owner: str) -> list[Problem]:
    prefix = f"{key}." if key else ""
    problems = []
    for name, value in values.items():
        if name in signature.arguments:
            problems += _check_value(f"{prefix}{name}", value, signature.arguments[name])
        elif not signature.open_ended:
            leaf, inside = _first_leaf(f"{prefix}{name}", value)
            problems.append(Problem(leaf, inside, _unknown(str(name), signature, owner)))
    for name in sorted(signature.required - values.keys()):
        expected = describe(signature.arguments[name])
        problems.append(Problem(f"{prefix}{name}", NO_VALUE, f"{owner} needs it: {expected}"))
    return problems


def _first_leaf(key: str, value: Any) -> tuple[str, Any]:
    while isinstance(value, dict) and value and not is_node(value):
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key, value


def _unknown(name: str, signature: Signature, owner: str) -> str:
    if name in signature.runtime:
        return f"{owner} gets {name!r} at run time; a configuration cannot set it"
    close = nearest(name, signature.arguments)
    accepted = ", ".join(signature.arguments) or "nothing"
    return f"{owner} has no {name!r}{close or '.'} It takes {accepted}"


def _check_value(key: str, value: Any, annotation: Any) -> list[Problem]:
    if typing.is_typeddict(annotation) and isinstance(value, dict):
        hints = typing.get_type_hints(annotation)
        signature = Signature(hints, frozenset(annotation.__required_keys__), (), False)
        return _check_arguments(key, value, signature, key)
    if is_node(value):
        if accepts_node(annotation, value):
            return []
        return [Problem(f"{key}._target_", value["_target_"], f"expected {describe(annotation)}")]
    item = item_of_mapping(annotation)
    if item is not None and isinstance(value, dict):
        return [one for name in value for one in _check_value(f"{key}.{name}", value[name], item)]
    if accepts(annotation, value):
        return []
    return [Problem(key, value, f"expected {describe(annotation)}")]


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key that exists (`a.b[0].c`)."""
    value: Any = config
    for name in key.replace("[", ".").replace("]", "").split("."):
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value

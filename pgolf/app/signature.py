"""What a constructor accepts: its keyword arguments, their types, and what it gets at run time."""

import difflib
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pgolf.digest import is_absent

REQUIRED = inspect.Parameter.empty
TARGETS_OF_TORCH = frozenset(
    f"torch.optim.{name}"
    for name in (
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Adagrad",
        "Adafactor",
        "Muon",
    )
)
PREFIX = "pgolf."
PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_allowed: tuple[str, ...] = ()
"""Packages besides pgolf that the configuration at hand allows; see `allow`."""


class TargetProblem(Exception):
    """A `_target_` that cannot be used; the message is a sentence without its key."""


@dataclass(frozen=True)
class Signature:
    """The keyword arguments that YAML gives to a target.

    arguments: name -> annotation; required: those without a default; runtime: the names of the
    positional parameters that code supplies; open_ended: the target takes any keyword.
    """

    arguments: dict[str, Any]
    required: frozenset[str]
    runtime: tuple[str, ...]
    open_ended: bool


def allow(packages: Any) -> None:
    """From now on targets inside `packages` (a configuration's `allow_targets`: names of the user's own packages or
    modules) can be located, until this is called again. Anything that is no list of names allows nothing: the
    validator says what is wrong with it."""
    global _allowed
    names = packages if isinstance(packages, list) else []
    _allowed = tuple(name for name in names if isinstance(name, str) and PACKAGE.fullmatch(name))


def _is_allowed(target: str) -> bool:
    own = any(target.startswith(f"{package}.") for package in _allowed)
    return own or target.startswith(PREFIX) or target in TARGETS_OF_TORCH


def locate(target: Any) -> Callable[..., Any]:
    """Import what a `_target_` names. TargetProblem when it is not allowed or not there."""
    if not isinstance(target, str):
        raise TargetProblem(f"a _target_ is a dotted name, not {target!r}")
    if not _is_allowed(target):
        raise TargetProblem(
            f"targets outside pgolf are refused, except {', '.join(sorted(TARGETS_OF_TORCH))}; "
            "allow_targets=[my_package] allows those of a package of your own"
        )
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        where = "" if target.startswith(PREFIX) else ": install it, or put its folder on PYTHONPATH"
        raise TargetProblem(f"there is no module {error.name}{where}") from error
    except ImportError as error:
        raise TargetProblem(f"{module_name} cannot be imported: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [one for one, value in vars(module).items() if callable(value) and one[0] != "_"]
        raise TargetProblem(f"{module_name} has no {name!r}{nearest(name, public)}")
    return typing.cast(Callable[..., Any], found)


def closest(name: str, names: typing.Iterable[str]) -> list[str]:
    """Up to three of `names` that a person may have meant."""
    return difflib.get_close_matches(name, sorted(set(names)), n=3, cutoff=0.6)


def did_you_mean(names: list[str]) -> str:
    """`; did you mean 'a' or 'b'?`, or nothing without names."""
    return f"; did you mean {' or '.join(repr(one) for one in names)}?" if names else ""


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """`did_you_mean` for the names close to `name`."""
    return did_you_mean(closest(name, names))


def signature_of(target: Callable[..., Any]) -> Signature:
    """Read a target's parameters.

    In pgolf and in a user's own packages, keyword-only parameters come from YAML and positional
    ones at run time. In torch (optimizers) the first parameter is the run-time one and the others
    come from YAML.
    """
    parameters = list(inspect.signature(target).parameters.values())
    ours = (getattr(target, "__module__", "") or "").partition(".")[0] != "torch"
    kinds = inspect.Parameter
    positional = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    runtime = positional if ours else positional[:1]
    given = [one for one in parameters if one.kind == kinds.KEYWORD_ONLY or (one in positional and one not in runtime)]
    others = [one for one in parameters if one.kind == kinds.VAR_KEYWORD]
    named = _named(others[0], target) if others else None
    arguments = {one.name: _evaluate(one.annotation, target) for one in given}
    return Signature(
        arguments=arguments if named is None else arguments | typing.get_type_hints(named),
        required=frozenset(one.name for one in given if one.default is REQUIRED)
        | getattr(named, "__required_keys__", frozenset()),
        runtime=tuple(one.name for one in runtime),
        open_ended=bool(others) and named is None,
    )


def _named(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    """The TypedDict that names the keywords of `**parameter: Unpack[...]`; None where any keyword goes."""
    annotation = _evaluate(parameter.annotation, target)
    return get_args(annotation)[0] if get_origin(annotation) is typing.Unpack else None


def _evaluate(annotation: Any, target: Callable[..., Any]) -> Any:
    if annotation is REQUIRED:
        return object
    if not isinstance(annotation, str):
        return annotation
    module = importlib.import_module(target.__module__)
    try:
        return eval(annotation, dict(vars(module)))
    except NameError:  # a name that exists for type checkers alone is a run-time object
        return object


def is_node(value: Any) -> bool:
    """Whether a plain value is a `_target_` node."""
    return isinstance(value, dict) and "_target_" in value


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a plain YAML value (not a node) fits an annotation; an int fits a float."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Any, object) or isinstance(annotation, typing.TypeVar):
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(one, value) for one in arguments)
    if origin is typing.Annotated:
        return accepts(arguments[0], value)
    if origin is Literal:
        return any(type(one) is type(value) and one == value for one in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation in SCALARS:
        return SCALARS[annotation](value)
    container = origin or annotation
    if container in (list, Sequence, tuple, set, frozenset):
        return isinstance(value, list) and _accepts_items(container, arguments, value)
    if container in (dict, Mapping):
        item = arguments[1] if len(arguments) == 2 else object
        return isinstance(value, dict) and all(_accepts_item(item, one) for one in value.values())
    if typing.is_typeddict(annotation):
        return isinstance(value, dict)
    return False  # a class or a callable: only a node can be one


def item_of_mapping(annotation: Any) -> Any:
    """The annotation of the values of a `dict[str, T]` or `Mapping[str, T]`; None for others."""
    arguments = get_args(annotation)
    mapping = get_origin(annotation) in (dict, Mapping) and len(arguments) == 2
    return arguments[1] if mapping else None


def _accepts_items(container: Any, arguments: tuple[Any, ...], value: list[Any]) -> bool:
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        return len(arguments) == len(value) and all(map(_accepts_item, arguments, value))
    item = arguments[0] if arguments else object
    return all(_accepts_item(item, one) for one in value)


def _accepts_item(annotation: Any, value: Any) -> bool:
    return accepts_node(annotation, value) if is_node(value) else accepts(annotation, value)


def accepts_node(annotation: Any, node: dict[str, Any]) -> bool:
    """Whether a `_target_` node may stand for an argument; an absent node stands for None."""
    if is_absent(node):
        return accepts(annotation, None) or annotation in (Any, object)
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return any(_is_part(one, node) for one in choices)


def _is_part(annotation: Any, node: dict[str, Any]) -> bool:
    if annotation in SCALARS or annotation is type(None) or get_origin(annotation) in (Literal, list, dict, tuple):
        return False
    try:
        target = locate(node["_target_"])
    except TargetProblem:
        return True  # reported where the node itself is checked
    comparable = isinstance(annotation, type) and not getattr(annotation, "_is_protocol", False)
    if comparable and isinstance(target, type) and not node.get("_partial_") and annotation is not object:
        return issubclass(target, annotation)
    return True


SCALARS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    Path: lambda value: isinstance(value, str),
}
WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
    None: "null",
}


def describe(annotation: Any) -> str:
    """An annotation in words: `a whole number or null`, `one of auto, sdpa`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(one) for one in arguments))
    if origin is typing.Annotated:
        return describe(arguments[0])
    if origin is Literal:
        return f"one of {', '.join(str(one) for one in arguments)}"
    container = origin or annotation
    if container is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(describe(one) for one in arguments)}"
    if container in (list, Sequence, tuple, set, frozenset):
        return f"a list, each item {describe(arguments[0])}" if arguments else "a list"
    if container in (dict, Mapping):
        return f"a mapping, each value {describe(arguments[1])}" if len(arguments) == 2 else "a mapping"
    return f"a part (a node with _target_, for {getattr(annotation, '__name__', annotation)})"

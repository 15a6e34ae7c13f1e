"""From nodes to objects: one node is one constructor call, `_partial_: true` a functools.partial.

This is all of `hydra.utils.instantiate` that pgolf uses, written out so that worker processes do
not import Hydra, parts are plain objects and plain partials, and an error names its node.
"""

import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin

from pgolf.app.signature import TargetProblem, allow, is_node, locate, signature_of
from pgolf.digest import is_absent
from pgolf.errors import UserError

if TYPE_CHECKING:
    from pgolf.run import Recipe

PARTS = ("data", "model", "optim", "train", "quant", "ttt", "audit")
COUNTED = ("model", "optim", "train", "quant", "ttt")
"""Parts whose modules count as code: data are prepared before, and the audit is no part of a submission."""
REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError, NotImplementedError)


class BuildError(UserError):
    """A constructor refused its arguments. key: that of its node; reason: what it said."""

    exit_status = 2

    def __init__(self, key: str, reason: str):
        self.key, self.reason = key, reason
        super().__init__(f"{key}: {reason}")


def recipe(config: dict[str, Any]) -> "Recipe":
    """The recipe that `pgolf.run.execute` carries out, from a resolved configuration."""
    from pgolf.app.machine import cache_root
    from pgolf.quant.code import RUN_ENTRIES, modules_of
    from pgolf.run import Recipe

    allow(config.get("allow_targets"))
    parts = {key: build(config[key], key) for key in PARTS}
    data_root = Path(config["paths"]["data"])
    return Recipe(
        name=config["name"],
        seed=config["seed"],
        kernels=config["kernels"],
        fused=config.get("fused", "auto"),
        compile_scoring=config.get("compile_scoring", False),
        data_root=data_root,
        description={
            "model": config["model"],
            "ttt": config["ttt"],
            "vocab_size": parts["data"].vocab_size,
        },
        modules=(*RUN_ENTRIES, *modules_of([config[key] for key in COUNTED])),
        cache_root=cache_root(),
        **parts,
    )


def build(value: Any, key: str) -> Any:
    """Construct what a plain value describes, nested nodes first; an absent node gives None.

    `key` is its dotted key, for errors. Raises BuildError for a target that is not allowed and
    for a constructor that raises.
    """
    if is_absent(value):
        return None
    if is_node(value):
        return _construct(value, key)
    if isinstance(value, dict):
        return {name: build(child, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list):
        return [build(child, f"{key}[{index}]") for index, child in enumerate(value)]
    return value


def _construct(node: dict[str, Any], key: str) -> Any:
    try:
        target = locate(node["_target_"])
    except TargetProblem as problem:
        raise BuildError(key, str(problem)) from problem
    annotations = signature_of(target).arguments
    arguments = {
        name: _as_annotated(build(child, f"{key}.{name}"), annotations.get(name))
        for name, child in node.items()
        if not name.startswith("_")
    }
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    with blaming(node, key):
        return target(**arguments)


def _as_annotated(value: Any, annotation: Any) -> Any:
    """YAML has lists alone; an argument that is annotated as a tuple gets a tuple."""
    wants_tuple = annotation is tuple or get_origin(annotation) is tuple
    return tuple(value) if wants_tuple and isinstance(value, list) else value


class blaming:
    """Turn what constructors raise inside the block into BuildError with the innermost node's key.

    A partial is called long after it was made, so the node is found by the code that was running.
    """

    def __init__(self, node: Any, key: str):
        self.node, self.key = node, key

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Translate the errors that a configuration can cause; let all others through."""
        if isinstance(error, BuildError) or not isinstance(error, REFUSALS):
            return
        owners: dict[Any, list[tuple[str, Any]]] = {}
        for key, target, node in _targets(self.node, self.key):
            owners.setdefault(_code(target), []).append((key, node))
        frames = [frame for frame, _ in traceback.walk_tb(trace) if frame.f_code in owners]
        running = [_likeliest(owners[frame.f_code], frame.f_locals) for frame in frames]
        reason = str(error) if str(error) else type(error).__name__
        raise BuildError(running[-1] if running else self.key, reason) from error


def _likeliest(nodes: list[tuple[str, Any]], arguments: Mapping[str, Any]) -> str:
    """The key of the node, among some of one target, with the most of its arguments as they are in the call."""

    def alike(node: Any) -> int:
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in node.items()}
        return sum(name in arguments and arguments[name] == value for name, value in values.items())

    return max(nodes, key=lambda one: alike(one[1]))[0]


def _targets(value: Any, key: str) -> Iterator[tuple[str, Callable[..., Any], Any]]:
    if is_node(value):
        yield key, locate(value["_target_"]), value
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _targets(child, f"{key}.{name}")


def _code(target: Callable[..., Any]) -> Any:
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    return getattr(function, "__code__", target)

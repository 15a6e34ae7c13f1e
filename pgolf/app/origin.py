"""Where a value of a composed configuration was set: the command line, or a file and its line."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Layer:
    """One file of the defaults list, in merge order, and the dotted package it lands in."""

    file: Path
    package: str


class Origins:
    """Finds the last place that set a dotted key.

    layers: the files in merge order; choices: `group -> override text` and assignments: dotted keys
    that the command line gave.
    """

    def __init__(self, layers: list[Layer], assignments: list[str]):
        self.layers, self.assignments = layers, assignments

    def find(self, key: str) -> str:
        """`command line`, `FILE:LINE`, or an empty string when nothing sets the key itself."""
        plain = key.replace("[", ".").replace("]", "")
        for assigned in self.assignments:
            if plain == assigned or plain.startswith(f"{assigned}."):
                return COMMAND_LINE
        for layer in reversed(self.layers):
            below = _below(plain, layer.package)
            line = _line_of(layer.file, below) if below is not None else None
            if line is not None:
                return f"{_short(layer.file)}:{line}"
        return ""

    def find_nearest(self, key: str) -> str:
        """The origin of the key, else that of the closest node above it."""
        while key:
            found = self.find(key) or self.find(f"{key}._target_")
            if found:
                return found
            key = key.rpartition(".")[0]
        return ""


def _below(key: str, package: str) -> list[str] | None:
    names, above = key.split("."), package.split(".") if package else []
    return names[len(above) :] if names[: len(above)] == above and len(names) > len(above) else None


def _line_of(file: Path, names: list[str]) -> int | None:
    node = yaml.compose(file.read_text("utf-8"))
    line = None
    for name in names:
        for key, value in _entries(node):
            if key.value == name:
                node, line = value, key.start_mark.line + 1
                break
        else:
            return line if isinstance(node, yaml.SequenceNode) and line else None
    return line


def _entries(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value


def _short(file: Path) -> str:
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative

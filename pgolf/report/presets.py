"""Preset files as text: on which they build, and what of the published run they say is not here.

The comment at the head of a preset names each thing of the published run that pgolf does not do (`# Missing: ...`) or
does otherwise (`# Differs: ...`); lines that begin with `#` and three spaces go on with the sentence before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from pgolf.errors import UserError

KEYWORDS = ("Missing", "Differs")
CONTINUED = "#   "


@dataclass(frozen=True)
class Preset:
    """One file of conf/experiment; parent: the preset that it builds on."""

    name: str
    parent: str | None
    missing: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Gaps:
    """What a preset and the ones that it builds on leave out or do otherwise, the oldest first."""

    missing: list[str]
    differs: list[str]


def preset_directory() -> Path:
    """`conf/experiment` inside an installed package, else that of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf" / "experiment"
    return installed if installed.is_dir() else package.parent / "conf" / "experiment"


def read_presets(directory: Path) -> dict[str, Preset]:
    """The presets of a folder by name. UserError when the folder is not there or a file is no YAML mapping."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder of presets.")
    return {path.stem: _read(path) for path in sorted(directory.glob("*.yaml")) if path.stem != "none"}


def _read(path: Path) -> Preset:
    text = path.read_text(encoding="utf-8")
    try:
        content = yaml.safe_load(text) or {}
        parents = [one for one in content.get("defaults", []) if isinstance(one, str) and one != "_self_"]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not a preset: {error}.") from error
    notes = {keyword: tuple(_notes(text.splitlines(), keyword)) for keyword in KEYWORDS}
    return Preset(path.stem, parents[0] if parents else None, notes["Missing"], notes["Differs"])


def _notes(lines: Iterable[str], keyword: str) -> list[str]:
    """The sentences after `# keyword:`."""
    found: list[str] = []
    inside = False
    for line in lines:
        if line.startswith(f"# {keyword}: "):
            found.append(line.partition(": ")[2].strip())
        elif inside and line.startswith(CONTINUED):
            found[-1] += f" {line.removeprefix(CONTINUED).strip()}"
            continue
        inside = line.startswith(f"# {keyword}: ")
    return found


def gaps(presets: dict[str, Preset], name: str) -> Gaps:
    """What the preset `name` and its parents say is not here."""
    line = lineage(presets, name)
    missing = [note for one in line for note in presets[one].missing]
    differs = [note for one in line for note in presets[one].differs]
    return Gaps(list(dict.fromkeys(missing)), list(dict.fromkeys(differs)))


def lineage(presets: dict[str, Preset], name: str) -> list[str]:
    """The presets that `name` builds on, the oldest first, and itself. UserError for a circle or a parent that is not
    there."""
    line = [name]
    while (parent := presets[line[0]].parent) is not None:
        if parent not in presets:
            raise UserError(f"preset {line[0]} builds on {parent}, which is not there.")
        if parent in line:
            raise UserError(f"preset {line[0]} builds on {parent}, which builds on it.")
        line.insert(0, parent)
    return line

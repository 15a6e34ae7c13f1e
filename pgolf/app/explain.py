"""What Hydra refuses while composing, as one sentence each, and the override that caused it."""

import re
from dataclasses import dataclass

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from pgolf.app.signature import nearest

NOT_THERE = re.compile(r"Could not (?:override|delete)(?: from config)?\.? ?'([^']+)'")
IN_FILE = re.compile(r"^In '([^']+)': ?", re.MULTILINE)
MERGING = re.compile(r"Error merging override (\S+)")
NOT_A_GROUP = re.compile(r"Override (\S+) looks like a config group")
LISTED = re.compile(r"argument '([^']+)'|Sweep parameters '([^']+)'")


@dataclass(frozen=True)
class Refusal:
    """Why a composition failed.

    override: the command-line override to blame, None when a file is; unknown: a key that is not in
    the configuration, whose nearest names are looked up later, when the rest has been composed.
    """

    sentence: str
    override: str | None = None
    unknown: str | None = None


def explain(error: Exception, overrides: list[str]) -> Refusal:
    """One refusal from one error of Hydra, OmegaConf or the YAML reader."""
    if isinstance(error, OverrideParseException):
        return Refusal(f"{error.override} (command line): {_first_line(error)}", error.override)
    if isinstance(error, MissingConfigException):
        return _missing_option(error, overrides)
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f"{mark.name}:{mark.line + 1}" if mark else "a configuration file"
        return Refusal(f"{place}: not valid YAML: {error.problem}")
    text = str(error) or str(error.__cause__)
    listed = LISTED.search(text)
    if listed:
        override = listed[1] or listed[2]
        return Refusal(
            f"{override} (command line): several values are a sweep; add --multirun, or write "
            f"{override.partition('=')[0]}=[...] for a list",
            _matching(override, overrides),
        )
    return _by_key(text, error, overrides)


def _by_key(text: str, error: Exception, overrides: list[str]) -> Refusal:
    file = IN_FILE.search(text)
    merging = MERGING.search(text)
    if merging:
        cause = _first_line(error.__cause__ or error)
        return Refusal(f"{merging[1]} (command line): {cause}", _matching(merging[1], overrides))
    group = NOT_A_GROUP.search(text)
    if group:
        return Refusal(f"{group[1]} (command line): there is no such group", _matching(group[1], overrides))
    unknown = NOT_THERE.search(text)
    if unknown and file is None:
        override = next((one for one in overrides if _key(one) == unknown[1]), None)
        return Refusal(
            f"{(override or unknown[1]).lstrip('+~')} (command line): there is no {unknown[1]!r} in the configuration",
            override,
            unknown[1],
        )
    place = f"{file[1]}.yaml: " if file else ""
    return Refusal(f"{place}{_first_line(IN_FILE.sub('', text))}")


def _missing_option(error: MissingConfigException, overrides: list[str]) -> Refusal:
    wanted = error.missing_cfg_file or ""
    group, _, option = wanted.rpartition("/")
    option = option.removesuffix(".yaml")
    options = sorted(error.options or [])
    if not options:
        return Refusal(f"there is no configuration file {wanted!r}; {_first_line(error)}")
    override = next((one for one in overrides if _key(one) == group and one.endswith(f"={option}")), None)
    file = IN_FILE.search(str(error))
    place = "command line" if override else f"{file[1]}.yaml" if file else "a defaults list"
    close = nearest(option, options)
    return Refusal(
        f"{group}={option} ({place}): there is no such option{close or '.'} Options of {group}: {', '.join(options)}",
        override,
    )


def _key(override: str) -> str:
    try:
        parsed: Override = OverridesParser.create().parse_override(override)
    except HydraException:
        return override.partition("=")[0]
    return parsed.key_or_group


def _matching(text: str, overrides: list[str]) -> str | None:
    return next(
        (one for one in overrides if one == text or _key(one) == text.partition("=")[0].lstrip("+~")),
        None,
    )


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

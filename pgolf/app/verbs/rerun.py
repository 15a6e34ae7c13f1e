"""A finished run's configuration with some parts changed: what `eval` and `audit` work on."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pgolf.app import check
from pgolf.app.compose import Job
from pgolf.app.verbs.composing import composed
from pgolf.errors import ConfigError, UserError
from pgolf.files import read_json

CHANGEABLE = ("ttt", "quant", "audit", "kernels", "track", "launch", "paths", "force")


@dataclass(frozen=True)
class Source:
    """A run directory to start from, and its configuration with the overrides applied.

    changed: the root keys that the overrides touch.
    """

    directory: Path
    config: dict[str, Any]
    overrides: list[str]
    changed: frozenset[str]


def open_source(run: str, overrides: list[str], options: argparse.Namespace) -> Source:
    """Read a run's configuration and apply overrides of the parts that need no training.

    The overrides are composed together with those of the run, so that groups, sizes and
    interpolations act as they did; every part that they do not touch is taken from the run.
    """
    directory = Path(run).expanduser().absolute()
    if not (directory / "config.json").is_file():
        raise UserError(f"run={run} is not a run directory: it has no config.json. Give the folder that pgolf printed.")
    stored = read_json(directory / "config.json")
    changed = frozenset(_root(one) for one in overrides)
    fixed = sorted(changed - set(CHANGEABLE))
    if fixed:
        raise ConfigError(
            [f"{key} (command line): a finished run keeps it; only {', '.join(CHANGEABLE)} can change" for key in fixed]
        )
    job = composed(_merged(_stored_overrides(directory), overrides), options)[0]
    config = {**stored, **{key: job.config[key] for key in changed & job.config.keys()}}
    if not Path(config["paths"]["data"]).is_dir() and "paths" in job.config:
        config["paths"] = job.config["paths"]  # the run was copied from another machine
    config["force"] = job.config.get("force", False)
    check.require_valid(
        [
            Job(
                job.overrides,
                config,
                directory,
                job.origins,
                job.options,
                job.refusals,
                job.unresolved,
            )
        ]
    )
    return Source(directory, config, overrides, changed)


def changeable(overrides: list[str]) -> list[str]:
    """The overrides of parts that need no training."""
    return [one for one in overrides if _root(one) in CHANGEABLE]


def _stored_overrides(directory: Path) -> list[str]:
    path = directory / ".hydra" / "overrides.yaml"
    stored = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else []
    return [str(one) for one in stored or []]


def _merged(stored: list[str], new: list[str]) -> list[str]:
    """A new choice replaces the stored one, and what was set inside the part it replaces."""
    keys = [_key(one) for one in new]
    kept = [
        one
        for one in stored
        if not any(_key(one) == key or _key(one).startswith((f"{key}.", f"{key}/")) for key in keys)
    ]
    return [one for one in kept if _root(one) != "force"] + new


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _root(override: str) -> str:
    return _key(override).replace("/", ".").partition(".")[0].partition("@")[0]

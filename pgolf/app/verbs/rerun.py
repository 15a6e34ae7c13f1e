"""A finished run's configuration with some parts changed: what `eval` and `audit` work on."""

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pgolf.app import check
from pgolf.app.compose import Job
from pgolf.app.verbs.composing import composed
from pgolf.errors import ConfigError, UserError
from pgolf.files import read_json

CHANGEABLE = (
    "ttt",
    "quant",
    "audit",
    "kernels",
    "compile_scoring",
    "track",
    "launch",
    "paths",
    "force",
    "allow_targets",
)
CHANGEABLE_KEYS = ("model.equilibrium.eval_iterations",)
"""What a model does otherwise when it is evaluated, with the same weights."""


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
    return open_sources(run, overrides, options, multirun=False)[0]


def open_sources(run: str, overrides: list[str], options: argparse.Namespace, multirun: bool) -> list[Source]:
    """As `open_source`, with a source for every combination where the overrides are a sweep (`quant=glob(*)`).

    ConfigError with every problem of every combination.
    """
    directory = Path(run).expanduser().absolute()
    if not (directory / "config.json").is_file():
        raise UserError(f"run={run} is not a run directory: it has no config.json. Give the folder that pgolf printed.")
    stored = read_json(directory / "config.json")
    keys = {_key(one) for one in overrides if _key(one) in CHANGEABLE_KEYS}
    changed = frozenset(_root(one) for one in overrides if _key(one) not in keys)
    fixed = sorted(changed - set(CHANGEABLE))
    if fixed:
        free = ", ".join((*CHANGEABLE, *CHANGEABLE_KEYS))
        raise ConfigError([f"{key} (command line): a finished run keeps it; only {free} can change" for key in fixed])
    if any(_key(one).replace("/", ".").startswith("quant.qat") for one in overrides):
        raise ConfigError(["quant.qat (command line): a finished run was trained with or without it, that stays"])
    composed_jobs = composed(_merged(_stored_overrides(directory), overrides), options, multirun)
    jobs = [replace(job, config=_with_parts(stored, job, changed, keys), directory=directory) for job in composed_jobs]
    check.require_valid(jobs, all_read=False)  # what was typed for training may be nothing to a score
    # what a job chose is at the end of its overrides, behind those of the run
    return [
        Source(directory, job.config, job.overrides[len(job.overrides) - len(overrides) :], changed) for job in jobs
    ]


def _with_parts(stored: dict[str, Any], job: Job, changed: frozenset[str], keys: set[str]) -> dict[str, Any]:
    """The run's configuration with the parts and single keys of the job that were changed, and without what only
    training knows."""
    config = {**copy.deepcopy(stored), **{key: job.config[key] for key in changed & job.config.keys()}}
    for key in keys:
        *parents, last = key.split(".")
        node, found = config, job.config
        for parent in parents:
            node, found = node[parent], found[parent]
        if last in found:  # else the job was refused, and the check says why
            node[last] = found[last]
    if isinstance(config["quant"], dict):
        config["quant"] = {key: node for key, node in config["quant"].items() if key != "qat"}
    if not Path(config["paths"]["data"]).is_dir() and "paths" in job.config:
        config["paths"] = job.config["paths"]  # the run was copied from another machine
    return {**config, "force": job.config.get("force", False)}


def changeable(overrides: list[str]) -> list[str]:
    """The overrides of parts that need no training."""
    return [one for one in overrides if _root(one) in CHANGEABLE]


def _stored_overrides(directory: Path) -> list[str]:
    path = directory / ".hydra" / "overrides.yaml"
    stored = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else []
    return [str(one) for one in stored or []]


def _merged(stored: list[str], new: list[str]) -> list[str]:
    """A new choice replaces the stored one, and what was set inside the part it replaces."""
    places = [_place(one) for one in new]
    kept = [one for one in stored if not any(f"{_place(one)}.".startswith(f"{place}.") for place in places)]
    return [one for one in kept if _root(one) != "force"] + new


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _place(override: str) -> str:
    """The dotted key that an override sets; that of a group is where its option lands."""
    key, _, package = _key(override).partition("@")
    return package or key.replace("/", ".")


def _root(override: str) -> str:
    return _key(override).replace("/", ".").partition(".")[0].partition("@")[0]

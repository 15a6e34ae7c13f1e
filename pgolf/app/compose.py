"""Compose every job of a command line before anything runs, and collect what is wrong in sentences.

The same loader, search path and override grammar as hydra.main; it makes no directory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pgolf.app.explain import Refusal, explain
from pgolf.app.loader import Loader
from pgolf.app.origin import Layer, Origins
from pgolf.app.plain import job_config
from pgolf.errors import UserError

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


@dataclass
class Job:
    """One composed job. `refusals`: what Hydra itself refused; `config`: what is left to check."""

    overrides: list[str]
    config: dict[str, Any]
    directory: Path
    origins: Origins = field(default_factory=lambda: Origins([], []))
    options: Callable[[str], list[str]] = list  # group -> its options
    refusals: list[Refusal] = field(default_factory=list)
    unresolved: list[tuple[str, str]] = field(default_factory=list)


def config_directory() -> Path:
    """The shipped configuration: inside the installed package, else the checkout's conf/."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def resolve_directory(config_path: str | None) -> Path:
    """What Hydra's `--config-path` means: absolute, or relative to the file of the application."""
    return Path(__file__).resolve().parent / config_path if config_path else config_directory()


class Composer:
    """Composes jobs from the shipped configuration and, first, the user's own `--config-dir`."""

    def __init__(self, hydra: Hydra, loader: Loader, config_name: str):
        self.hydra, self.loader, self.config_name = hydra, loader, config_name

    def jobs(self, overrides: list[str], multirun: bool) -> list[Job]:
        """The jobs of a command line, in order: one, or every combination of a sweep.

        Other sweepers than Hydra's own choose values while they run; for them the jobs cannot be
        listed, and one job without the swept values stands for all.
        """
        legal, refusals = self._parse(overrides)
        expanded = self._expand(legal) if multirun else [legal]
        return [self._job(one, multirun, list(refusals)) for one in expanded]

    def groups(self) -> dict[str, list[str]]:
        """Every group of the configuration and its options, nested groups as `model/attention`."""
        found: dict[str, list[str]] = {}
        waiting = list(self.loader.list_groups(""))
        while waiting:
            group = waiting.pop(0)
            options = self.loader.get_group_options(group)
            found |= {group: sorted(options)} if options else {}
            waiting += [f"{group}/{one}" for one in self.loader.list_groups(group)]
        return {group: names for group, names in sorted(found.items()) if not group.startswith("hydra")}

    def placed(self, group: str) -> str:
        """The key that chooses an option of `group`: with its package where one file of the group serves several parts
        (`quant/scheme@quant.matrix`, the first of them)."""
        return next((one for one in self._choices if one.partition("@")[0] == group), group)

    def has(self, group: str) -> bool:
        """Whether the configuration without overrides chooses an option of `group`; a part may have groups of its own,
        which are there with that part alone, and presets name theirs by what they are."""
        return any(one.partition("@")[0] == group for one in self._choices)

    @cached_property
    def _choices(self) -> list[str]:
        """The keys that choose options in the configuration without overrides."""
        return [str(one) for one in self.hydra.compose_config(self.config_name, [], RunMode.RUN).hydra.runtime.choices]

    def _parse(self, overrides: list[str]) -> tuple[list[str], list[Refusal]]:
        legal, refusals = [], []
        for override in overrides:
            try:
                _key_or_group(override)
                legal.append(override)
            except HydraException as error:
                refusals.append(explain(error, [override]))
        return legal, refusals

    def _expand(self, overrides: list[str]) -> list[list[str]]:
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(overrides)
        fixed = [str(one.input_line) for one in parsed if one.is_hydra_override()]
        try:
            master = self.hydra.compose_config(self.config_name, fixed, RunMode.MULTIRUN)
            sweeper = master.hydra.sweeper
        except COMPOSITION_ERRORS:
            sweeper = None  # refused again, and explained, when the job is composed
        plain = [one for one in parsed if not one.is_hydra_override()]
        if sweeper is None or not str(sweeper._target_).endswith(".BasicSweeper"):
            return [fixed + [str(one.input_line) for one in plain if not one.is_sweep_override()]]
        standing = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        swept = OverridesParser.create(config_loader=self.loader).parse_overrides(standing) + plain
        return [fixed + list(one) for batch in BasicSweeper.split_arguments(swept, None) for one in batch]

    def _job(self, overrides: list[str], multirun: bool, refusals: list[Refusal]) -> Job:
        remaining = list(overrides)
        while True:
            try:
                composed = self.hydra.compose_config(self.config_name, remaining, RunMode.RUN)
                break
            except COMPOSITION_ERRORS as error:
                refusal = explain(error, remaining)
                refusals.append(refusal)
                if refusal.override is None:
                    return Job(overrides, {}, Path(), refusals=refusals)
                remaining.remove(refusal.override)
        config, unresolved = job_config(composed, composed.hydra)
        directory = Path() if refusals or unresolved else _directory(composed, multirun)
        origins = Origins(self._layers(), _assignments(remaining, composed))
        options = self.loader.get_group_options
        return Job(overrides, config, directory, origins, options, refusals, unresolved)

    def _layers(self) -> list[Layer]:
        """The files of the composition just made."""
        roots = [Path(one.path) for one in self.loader.get_sources() if one.scheme() == "file"]
        layers = []
        for default in self.loader.defaults:
            path = default.config_path or ""
            if path.startswith("hydra/"):
                continue
            name = path if path.endswith(".yaml") else f"{path}.yaml"
            files = [root / name for root in roots if (root / name).is_file()]
            layers += [Layer(files[0], default.package or "")] if files else []
        return layers


@contextmanager
def composer(extra: str | None = None, directory: Path | None = None, name: str = "config") -> Iterator[Composer]:
    """A composer for the block. extra: the user's `--config-dir`; UserError without it."""
    search_path = create_config_search_path(str(directory or config_directory()))
    if extra is not None:
        if not Path(extra).is_dir():
            raise UserError(f"--config-dir {extra}: there is no such directory.")
        anchor = SearchPathQuery(provider="schema")
        search_path.prepend("command-line", f"file://{Path(extra).absolute()}", anchor)
    GlobalHydra.instance().clear()
    try:
        loader = Loader(search_path)
        hydra = Hydra("pgolf", loader)
        GlobalHydra.instance().initialize(hydra)
        yield Composer(hydra, loader, name)
    finally:
        GlobalHydra.instance().clear()


def _directory(composed: DictConfig, multirun: bool) -> Path:
    if not multirun:
        return Path(str(OmegaConf.select(composed, "hydra.run.dir"))).absolute()
    sweep = OmegaConf.select(composed, "hydra.sweep.dir")
    return Path(str(sweep)).absolute() / str(OmegaConf.select(composed, "hydra.sweep.subdir"))


def _assignments(overrides: list[str], composed: DictConfig) -> list[str]:
    groups = set(composed.hydra.runtime.choices)
    return [key for key in map(_key_or_group, overrides) if key not in groups]


@lru_cache(maxsize=4096)
def _key_or_group(override: str) -> str:
    """What an override is about. HydraException when it is none."""
    return OverridesParser.create().parse_overrides([override])[0].key_or_group

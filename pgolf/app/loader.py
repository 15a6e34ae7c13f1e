"""Hydra's configuration loader, remembering what it did: a sweep composes hundreds of jobs from the same files."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal import defaults_list as listing
from hydra._internal import hydra as main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

SEARCH_PATH = "hydra.searchpath"
TO_STRIP = "HYDRA_REMOVE_TOP_LEVEL_DEFAULTS"
KEPT = 256
"""Merged configurations that a loader remembers, 50 kB each; then it forgets them all."""

Key = tuple[Any, ...]


@dataclass
class Memory:
    """What one loader has read and made of it, under all that it depends on besides the files.

    files: by path. lists: the defaults list and the choices, by the overrides that choose options. parts and merged:
    pickles of one file in its package and of all files of a defaults list, before any value is set; whoever takes one
    out has a copy of its own.
    """

    files: dict[str, ConfigResult | None] = field(default_factory=dict)
    lists: dict[Key, DefaultsList] = field(default_factory=dict)
    parts: dict[Key, bytes] = field(default_factory=dict)
    merged: dict[Key, bytes] = field(default_factory=dict)

    def copy(self, pickles: dict[Key, bytes], key: Key, make: Callable[[], Any]) -> Any:
        """What lies under a key, made first where nothing does."""
        if key not in pickles:
            if len(pickles) >= KEPT and pickles is self.merged:
                pickles.clear()
            pickles[key] = pickle.dumps(make())
        return pickle.loads(pickles[key])


class Repository(CachingConfigRepository):
    """The files of one search path, and the memory of them."""

    def __init__(self, delegate: IConfigRepository, memory: Memory) -> None:
        super().__init__(delegate)
        self.memory, self.cache = memory, memory.files


class Loader(ConfigLoaderImpl):
    """Composes like Hydra's own, and does nothing twice in its life: files, defaults lists and merged configurations
    are kept. Jobs that change the search path begin with an empty memory.

    defaults: the files of the latest composition in merge order, with the package each lands in.
    """

    def __init__(self, search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path=search_path)
        self.defaults: Sequence[ResultDefault] = ()
        self._memory = Memory()

    @contextmanager
    def serving_hydra(self) -> Iterator[None]:
        """Inside, hydra.main composes with this loader, which has the jobs already, where its search path is this
        one's."""
        hydras = main.ConfigLoaderImpl

        def loader(config_search_path: ConfigSearchPath) -> ConfigLoaderImpl:
            same = str(config_search_path) == str(self.config_search_path)
            return self if same else hydras(config_search_path=config_search_path)

        main.ConfigLoaderImpl = loader  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            main.ConfigLoaderImpl = hydras  # type: ignore[misc]

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        moved = any(one.get_key_element() == SEARCH_PATH for one in parsed)
        repository = Repository(self.repository, Memory() if moved else self._memory)
        self._process_config_searchpath(config_name, parsed, repository)
        return parsed, repository

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        assert isinstance(repo, Repository)
        load = super()._load_single_config
        result: ConfigResult = repo.memory.copy(repo.memory.parts, _key(default), lambda: load(default, repo))
        return result

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        assert isinstance(repo, Repository)
        self.defaults = defaults
        key = tuple(_key(one) for one in defaults)
        merged: DictConfig = repo.memory.copy(repo.memory.merged, key, lambda: self._merge(defaults, repo))
        return merged

    def _merge(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        """All files in one go: Hydra's way, one by one, mends all parents after each. It is taken for what cannot be
        merged, and says in which file that is."""
        merged = DictConfig({})
        parts = [self._load_single_config(one, repo).config for one in defaults]
        try:
            with flag_override(merged, "no_deepcopy_set_nodes", True):
                merged.merge_with(*parts)
        except OmegaConfBaseException:
            return super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)
        _strip(merged)
        return merged


def _key(default: ResultDefault) -> Key:
    return default.config_path, default.package, default.primary


def _strip(node: Any) -> None:
    """Take away the defaults lists that schemas of plugins still have."""
    if not isinstance(node, DictConfig) or node._is_missing() or node._is_none():
        return
    if node._get_flag(TO_STRIP):
        with flag_override(node, ["readonly", "struct"], False):
            node._set_flag(TO_STRIP, None)
            node.pop("defaults", None)
    for _, child in node.items_ex(resolve=False):
        _strip(child)


_hydras_list, _hydras_choices = listing.create_defaults_list, listing._create_interpolation_map


def _list(
    repo: IConfigRepository,
    config_name: str | None,
    overrides_list: list[Override],
    prepend_hydra: bool,
    skip_missing: bool,
) -> DefaultsList:
    """The defaults list, made where other options are chosen than ever before."""

    def made() -> DefaultsList:
        return _hydras_list(repo, config_name, overrides_list, prepend_hydra, skip_missing)

    if not isinstance(repo, Repository):
        return made()
    own = Overrides(repo=repo, overrides_list=overrides_list)
    values = {id(one) for one in own.config_overrides}
    choosing = [one for one in overrides_list if id(one) not in values and not one.is_sweep_override()]
    chosen = (config_name, *(one.input_line for one in choosing), prepend_hydra)
    key = (*chosen, False)  # a list that was made where nothing may be missing is the same where something may
    if skip_missing and key not in repo.memory.lists:
        key = (*chosen, True)
    if key not in repo.memory.lists:
        repo.memory.lists[key] = made()
    return replace(repo.memory.lists[key], config_overrides=own.config_overrides)


def _choices(overrides: Overrides, defaults_list: list[InputDefault], self_added: bool) -> DictConfig:
    """What interpolations in a defaults list can name. Hydra makes it for every file, which took half of the time of
    a composition, and few files have any."""
    if not any(one.is_interpolation() for one in defaults_list):
        return DictConfig({})
    return _hydras_choices(overrides, defaults_list, self_added)


config_loader_impl.create_defaults_list = _list
listing._create_interpolation_map = _choices

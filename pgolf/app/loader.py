"""Hydra's configuration loader, remembering what it read: a sweep composes hundreds of jobs from the same files."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

SEARCH_PATH = "hydra.searchpath"


class Loader(ConfigLoaderImpl):
    """Composes like Hydra's own, and reads each file once in its life instead of twice a job.

    defaults: the files of the latest composition in merge order, with the package each lands in. Jobs that change the
    search path read for themselves.
    """

    def __init__(self, search_path: ConfigSearchPath):
        super().__init__(config_search_path=search_path)
        self.defaults: Sequence[ResultDefault] = ()
        self._read: dict[str, ConfigResult | None] = {}

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        parsed, repository = super()._parse_overrides_and_create_caching_repo(config_name, overrides)
        if not any(one.get_key_element() == SEARCH_PATH for one in parsed):
            repository.cache = self._read
        return parsed, repository

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        """A copy, for merging takes nodes over and the next job's values would land in what was read."""
        result = copy.copy(super()._load_single_config(default, repo))
        result.config = copy.deepcopy(result.config)
        return result

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self.defaults = defaults
        composed: Any = super()._compose_config_from_defaults_list(defaults=defaults, repo=repo)
        return composed

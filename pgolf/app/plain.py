"""From Hydra's composed configuration to the plain, resolved one that everything else reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pgolf import digest
from pgolf.app.replaced import drop_unheard
from pgolf.app.signature import allow
from pgolf.app.verbs import listing

NO_VALUE_GIVEN = "no file and no override gives it a value"


def job_config(composed: DictConfig, hydra: Any) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The resolved configuration of a job, without the `hydra` node, and (key, problem) pairs; `hydra` is that node.

    `name` is filled from the chosen experiment, paths become absolute, and an absent part keeps its
    target alone: what a preset had set on a part that is then taken away, or replaced by one that does not take it,
    has nothing to act on.
    """
    problems: list[tuple[str, str]] = []
    config: dict[str, Any] = {
        str(key): _resolve(composed, key, str(key), problems) for key in composed if key != "hydra"
    }
    config = settle(config)
    allow(config.get("allow_targets"))
    experiment = chosen_experiment(hydra.runtime.choices)
    if experiment is not None:
        folders = [Path(one.path) / "experiment" for one in hydra.runtime.config_sources if one.schema == "file"]
        drop_unheard(config, experiment, folders, list(hydra.overrides.task), set(hydra.runtime.choices))
    if config.get("name") is None and "name" in config:
        config["name"] = experiment or "default"
    if isinstance(config.get("paths"), dict):
        config["paths"] = {key: _absolute(value) for key, value in config["paths"].items()}
    return config, problems


def chosen_experiment(choices: Mapping[str, Any]) -> str | None:
    """The experiment among Hydra's choices, None without one."""
    choice = choices.get("experiment")
    return None if choice in (None, "none") else str(choice)


def settle(node: Any) -> Any:
    """Reduce every absent node to its target."""
    if digest.is_absent(node):
        return {"_target_": digest.ABSENT_TARGET}
    if isinstance(node, dict):
        return {key: settle(value) for key, value in node.items()}
    if isinstance(node, list):
        return [settle(value) for value in node]
    return node


def _absolute(value: Any) -> Any:
    return str(Path(value).expanduser().absolute()) if isinstance(value, str) else value


def _resolve(parent: DictConfig | ListConfig, key: Any, dotted: str, problems: list[tuple[str, str]]) -> Any:
    if OmegaConf.is_missing(parent, key):
        problems.append((dotted, NO_VALUE_GIVEN))
        return None
    try:
        value = parent[key]
    except OmegaConfBaseException as error:
        problems.append((dotted, f"its interpolation does not resolve: {error!s}".splitlines()[0]))
        return None
    if isinstance(value, DictConfig):
        return {str(name): _resolve(value, name, f"{dotted}.{name!s}", problems) for name in value}
    if isinstance(value, ListConfig):
        return [_resolve(value, index, f"{dotted}[{index}]", problems) for index in range(len(value))]
    return value


def register_resolvers() -> None:
    """The `${pgolf...:}` names that conf/config.yaml uses for directories and help."""
    OmegaConf.register_new_resolver("pgolf.run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("pgolf.run_directory", _run_directory, replace=True)
    OmegaConf.register_new_resolver("pgolf.verbs", listing, replace=True)


def _of_root(root: DictConfig) -> dict[str, Any]:
    return job_config(root, root.hydra)[0]


def _run_name(*, _root_: DictConfig) -> str:
    return digest.run_name(_of_root(_root_))


def _run_directory(*, _root_: DictConfig) -> str:
    config = _of_root(_root_)
    return str(Path(str(config["paths"]["runs"])) / digest.run_name(config))


register_resolvers()

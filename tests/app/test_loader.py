"""Nothing is read or merged twice, and every job is composed as if it were the first."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal import hydra as main
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.default_element import ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pgolf.app import loader
from pgolf.app.compose import composer, config_directory
from pgolf.app.plain import job_config

JOBS = (
    ["scale=mini"],
    ["experiment=pr1736"],
    ["scale=nano", "quant/scheme@quant.matrix=percentile"],
    ["seed=1"],
    ["seed=2", "model.dim=48"],
    ["model.dim=48", "model/smear=smear", "+model.attention.window=7"],
    ["model/smear=smear", "~audit.flips", "hydra.job.name=other"],
    ["experiment=pr1736", "seed=3", "ttt=none"],
    ["hydra/sweeper=basic", "hydra.sweeper.max_batch_size=3", "hydra/job_logging=default"],
    ["scale=mini"],
)


def by_hydra_alone(monkeypatch: pytest.MonkeyPatch) -> tuple[list[DictConfig], list[list[ResultDefault]]]:
    """What its own loader and functions make of the jobs: the configurations, and the files of the first four."""
    with monkeypatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", loader._hydras_list)
        patch.setattr(defaults_list, "_create_interpolation_map", loader._hydras_choices)
        GlobalHydra.instance().clear()
        hydra = Hydra.create_main_hydra2("pgolf", create_config_search_path(str(config_directory())))
        assert type(hydra.config_loader) is ConfigLoaderImpl
        composed = [hydra.compose_config("config", list(one), RunMode.RUN) for one in JOBS]
        files = [hydra.config_loader.compute_defaults_list("config", one, RunMode.RUN).defaults for one in JOBS[:4]]
        GlobalHydra.instance().clear()
    return composed, files


def plain(composed: DictConfig) -> Any:
    return OmegaConf.to_container(composed, resolve=False, throw_on_missing=False)


def test_jobs_of_one_composer_equal_those_of_hydra_alone_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, files_of = by_hydra_alone(monkeypatch)
    with composer() as made:
        for overrides, composed, files in zip_longest(JOBS, expected, files_of):
            assert plain(made.hydra.compose_config("config", list(overrides), RunMode.RUN)) == plain(composed)
            job = made.jobs(list(overrides), False)[0]
            assert job.config == job_config(composed, composed.hydra)[0]
            if files is None:
                continue
            found = [
                (str(layer.file.relative_to(config_directory()).with_suffix("")), layer.package)
                for layer in job.origins.layers
            ]
            assert found == [
                (str(one.config_path).removesuffix(".yaml"), one.package or "")
                for one in files
                if one.config_path and not one.config_path.startswith("hydra/")
            ]


def test_what_a_job_changes_stays_in_it_when_much_is_forgotten(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs differ by values alone, by options alone, and by both; two merged configurations are kept."""
    monkeypatch.setattr(loader, "KEPT", 2)
    with composer(None, conf) as made:
        for _ in range(2):
            for seed, ttt, dim in (
                (1, "none", 8),
                (2, "none", 8),
                (2, "phased", 8),
                (1, "phased", 16),
                (3, "none", 16),
            ):
                config = made.jobs([f"seed={seed}", f"ttt={ttt}", f"model.dim={dim}"], False)[0].config
                assert (config["seed"], config["model"]["dim"]) == (seed, dim)
                assert ("phases" in config["ttt"]) == (ttt == "phased")
        default = made.jobs([], False)[0].config
        assert (default["seed"], default["model"]["dim"], default["ttt"]["phases"]) == (42, 64, 2)


@pytest.mark.parametrize("plugin", ["submitit_slurm", "joblib"])
def test_the_schemas_of_plugins_lose_their_defaults_lists(plugin: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin.partition('_')[0]}_launcher")
    with composer() as made:
        launcher = made.hydra.compose_config("config", [f"hydra/launcher={plugin}"], RunMode.RUN).hydra.launcher
    assert launcher._target_.startswith("hydra_plugins.") and "defaults" not in launcher


def test_what_cannot_be_merged_is_told_with_its_file(conf: Path) -> None:
    (conf / "experiment" / "mine.yaml").write_text("# @package _global_\nhydra:\n  verbose: [1]\n  sweep: 3\n")
    with composer(None, conf) as made:
        (refusal,) = made.jobs(["experiment=mine"], False)[0].refusals
    assert refusal.sentence.startswith("experiment/mine.yaml: ")


def test_a_new_composer_reads_what_has_changed(conf: Path) -> None:
    def dim() -> Any:
        with composer(None, conf) as made:
            return made.jobs(["scale=full"], False)[0].config["model"]["dim"]

    assert dim() == 128
    path = conf / "model" / "tiny.yaml"
    path.write_text(path.read_text().replace("128", "132"))
    assert dim() == 132


def test_a_search_path_on_the_command_line_is_read_for_itself(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    mine = tmp_path / "experiment" / "mine.yaml"
    mine.write_text("# @package _global_\nseed: 77\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    with composer() as made:
        before = made.jobs(["scale=mini"], False)[0]
        found = made.jobs([path, "experiment=mine"], False)[0]
        after = made.jobs(["experiment=mine"], False)[0]
        mine.write_text("# @package _global_\nseed: 78\n")
        later = made.jobs([path, "experiment=mine"], False)[0]
    assert before.config["seed"] == 42 and found.config["seed"] == 77 and later.config["seed"] == 78
    assert after.refusals, "the search path of one job must not reach the next"


def test_hydra_main_composes_with_the_loader_that_has_the_jobs(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with one of its own where it searches elsewhere."""
    read: list[str] = []
    files = SourcesRegistry.instance().resolve("file")
    load = files.load_config
    monkeypatch.setattr(
        files, "load_config", lambda self, config_path: read.append(config_path) or load(self, config_path)
    )
    with composer(None, conf) as made:
        job = made.jobs(["seed=5"], False)[0]
    assert read
    read.clear()
    with made.loader.serving_hydra():
        hydra = Hydra.create_main_hydra2("pgolf", create_config_search_path(str(conf)))
        GlobalHydra.instance().clear()
        assert hydra.config_loader is made.loader
        for mode in (RunMode.MULTIRUN, RunMode.RUN):
            assert hydra.compose_config("config", ["seed=5"], mode).seed == job.config["seed"] == 5
        assert hydra.compose_config("config", ["seed=6"], RunMode.RUN).seed == 6 and read == []
        other = Hydra.create_main_hydra2("pgolf", create_config_search_path(str(config_directory())))
        GlobalHydra.instance().clear()
        assert type(other.config_loader) is ConfigLoaderImpl
    assert main.ConfigLoaderImpl is ConfigLoaderImpl

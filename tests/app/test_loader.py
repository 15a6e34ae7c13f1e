"""Files are read once, and every job is composed as if it were the first."""

from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from pgolf.app.compose import composer, config_directory
from pgolf.app.plain import job_config

JOBS = (["scale=mini"], ["experiment=pr1736"], ["scale=nano", "quant/scheme@quant.matrix=percentile"], ["seed=1"])


def test_jobs_of_one_composer_equal_those_of_hydra_alone_in_any_order() -> None:
    with composer() as made:
        ours = [made.jobs(list(overrides), False)[0] for overrides in JOBS]
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2("pgolf", create_config_search_path(str(config_directory())))
    for overrides, job in zip(JOBS, ours, strict=True):
        composed = hydra.compose_config("config", overrides, RunMode.RUN)
        assert job.config == job_config(composed, composed.hydra)[0]
        defaults = hydra.config_loader.compute_defaults_list("config", overrides, RunMode.RUN).defaults
        expected = [
            (str(one.config_path).removesuffix(".yaml"), one.package or "")
            for one in defaults
            if one.config_path and not one.config_path.startswith("hydra/")
        ]
        found = [
            (str(layer.file.relative_to(config_directory()).with_suffix("")), layer.package)
            for layer in job.origins.layers
        ]
        assert found == expected
    GlobalHydra.instance().clear()


def test_a_search_path_on_the_command_line_is_read_for_itself(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 77\n")
    path = f"hydra.searchpath=[file://{tmp_path}]"
    with composer() as made:
        before = made.jobs(["scale=mini"], False)[0]
        found = made.jobs([path, "experiment=mine"], False)[0]
        after = made.jobs(["experiment=mine"], False)[0]
    assert before.config["seed"] == 42 and found.config["seed"] == 77
    assert after.refusals, "the search path of one job must not reach the next"

"""What of a finished run's model may be otherwise when it is scored again."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from pgolf.app.verbs.composing import compose, parser
from pgolf.app.verbs.rerun import open_source
from pgolf.digest import digest
from pgolf.errors import ConfigError

OPTIONS = parser("eval", "", "").parse_args([])
KEY = "model.equilibrium.eval_iterations"


def run_of(directory: Path, *overrides: str) -> Path:
    """What `eval` reads of a finished run."""
    job = compose(["scale=nano", *overrides], OPTIONS)
    (directory / ".hydra").mkdir()
    (directory / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (directory / "config.json").write_text(json.dumps(job.config))
    return directory


def test_a_fixed_point_may_be_evaluated_with_other_iterations(tmp_path: Path) -> None:
    run = run_of(tmp_path, "scale=nano", "model/equilibrium=revdeq")
    before, after = (open_source(str(run), words, OPTIONS).config for words in ([], [f"{KEY}=7"]))
    assert before["model"]["equilibrium"]["eval_iterations"] is None
    expected = copy.deepcopy(before)
    expected["model"]["equilibrium"]["eval_iterations"] = 7
    assert after == expected and digest(after) != digest(before)  # so each has a directory of its own
    with pytest.raises(ConfigError, match="model .*a finished run keeps it"):
        open_source(str(run), [f"{KEY}=7", "model.equilibrium.beta=0.5"], OPTIONS)


def test_a_model_without_one_refuses_it(tmp_path: Path) -> None:
    run = run_of(tmp_path, "scale=nano")
    with pytest.raises(ConfigError, match="eval_iterations"):
        open_source(str(run), [f"{KEY}=7"], OPTIONS)

"""What an experiment sets on a part that the command line replaces has nothing to act on; nothing else is dropped."""

from pathlib import Path
from typing import Any

import pytest

from pgolf.app.compose import composer
from tests.app.test_refusals import only, problems

PLAIN = "_target_: pgolf.fakes.Audit\nprobes: 1\n"  # a part that takes none of what others take
MINE = """\
# @package _global_
defaults:
  - override /model/attention/gate: sparse
ttt:
  phases: 7
model:
  attention:
    gate:
      width: 24
quant:
  schemes:
    head:
      bits: 3
"""


@pytest.fixture
def mine(conf: Path) -> Path:
    """The small configuration with an experiment, a child of it, and other parts."""
    (conf / "experiment" / "mine.yaml").write_text(MINE)
    (conf / "experiment" / "child.yaml").write_text("# @package _global_\ndefaults:\n  - mine\n  - _self_\nseed: 7\n")
    (conf / "ttt" / "plain.yaml").write_text(PLAIN)
    (conf / "quant" / "bare.yaml").write_text("_target_: pgolf.fakes.Quant\ncoder: zstd\nschemes: {}\n")
    return conf


def config(conf: Path, *overrides: str) -> dict[str, Any]:
    assert problems(conf, *overrides) == []
    with composer(None, conf) as made:
        return made.jobs(list(overrides), False)[0].config


@pytest.mark.parametrize("experiment", ["mine", "child"])
def test_settings_of_a_replaced_part_go_with_it(mine: Path, experiment: str) -> None:
    with_schemes = "quant.schemes.head._target_=pgolf.fakes.Scheme"
    overrides = [f"experiment={experiment}", "ttt=plain", "quant=bare"]
    made = config(mine, *overrides)
    assert made["ttt"] == {"_target_": "pgolf.fakes.Audit", "probes": 1}
    assert made["quant"] == {"_target_": "pgolf.fakes.Quant", "coder": "zstd", "schemes": {}}
    assert made["seed"] == (7 if experiment == "child" else 42)
    # what is typed is kept, and so is what the experiment says beside it
    assert config(mine, *overrides, f"+{with_schemes}")["quant"]["schemes"] == {
        "head": {"bits": 3, "_target_": "pgolf.fakes.Scheme"}
    }


def test_what_the_new_part_takes_is_kept(mine: Path) -> None:
    (mine / "ttt" / "other.yaml").write_text("_target_: pgolf.fakes.Ttt\nphases: 1\n")
    assert config(mine, "experiment=mine", "ttt=other", "quant=bare")["ttt"]["phases"] == 7


def test_a_part_that_is_not_replaced_is_checked_as_ever(mine: Path) -> None:
    assert problems(mine, "experiment=mine", "quant=bare", "ttt.phases=2", "seed=3") == []
    assert "quant.schemes" in only(problems(mine, "experiment=mine"))  # a scheme without a target
    (mine / "experiment" / "mine.yaml").write_text("# @package _global_\nttt:\n  phasess: 7\n")
    assert "did you mean 'phases'?" in only(problems(mine, "experiment=mine"))


def test_what_is_typed_is_never_dropped(mine: Path) -> None:
    sentence = only(problems(mine, "experiment=mine", "quant=bare", "ttt=plain", "ttt.phases=2"))
    assert sentence.startswith("ttt.phases = 2 (command line)") and "has no 'phases'" in sentence


def test_an_experiment_may_choose_another_part_than_the_one_it_builds_on(mine: Path) -> None:
    child = (
        "# @package _global_\ndefaults:\n  - mine\n  - _self_\n  - override /ttt: plain\n  - override /quant: bare\n"
    )
    (mine / "experiment" / "other.yaml").write_text(child)
    made = config(mine, "experiment=other")
    assert made["ttt"] == {"_target_": "pgolf.fakes.Audit", "probes": 1} and made["quant"]["schemes"] == {}
    grandchild = "# @package _global_\ndefaults:\n  - other\n  - _self_\nttt:\n  phases: 2\n"
    (mine / "experiment" / "wrong.yaml").write_text(grandchild)
    assert "wrong.yaml:6)" in only(problems(mine, "experiment=wrong"))  # set after the choice: told


def test_the_digest_is_that_of_what_is_left(mine: Path) -> None:
    with composer(None, mine) as made:
        replaced, plain = (
            made.jobs([f"experiment={name}", "ttt=plain", "quant=bare", "model.attention.gate=null"], False)[0]
            for name in ("mine", "none")
        )
    assert replaced.directory.name.partition("-")[2] == plain.directory.name.partition("-")[2]

"""What does and does not change the digest, and with it the directory of a run."""

import copy
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pgolf.app.compose import composer
from pgolf.digest import BOOKKEEPING, config_hash, digest, group_digest, run_name

LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NAMES = st.text("abcdefgh", min_size=1, max_size=3)
NODE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
CONFIG = st.dictionaries(NAMES, NODE, max_size=4)
ABSENT = {"_target_": "pgolf.absent.absent"}


@given(CONFIG, NAMES)
def test_an_absent_option_changes_no_digest_at_any_depth(config: dict[str, Any], name: str) -> None:
    def with_absent(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: with_absent(value) for key, value in node.items()} | {f"zz{name}": ABSENT}
        return [with_absent(value) for value in node] if isinstance(node, list) else node

    assert digest(with_absent(config)) == digest(config)
    assert group_digest(with_absent(config)) == group_digest(config)


@given(CONFIG, LEAF)
def test_bookkeeping_changes_no_digest(config: dict[str, Any], value: object) -> None:
    changed = {**config, **dict.fromkeys(BOOKKEEPING, value)}
    assert digest(changed) == digest(config)


@given(CONFIG, st.integers(), st.integers())
def test_only_the_group_digest_ignores_the_seed(config: dict[str, Any], first: int, second: int) -> None:
    one, two = ({**config, "seed": seed, "deep": {"seed": seed}} for seed in (first, second))
    assert group_digest(one) == group_digest(two)
    assert (digest(one) == digest(two)) == (first == second)


@given(CONFIG)
def test_order_does_not_matter_and_values_do(config: dict[str, Any]) -> None:
    assert digest(dict(reversed(config.items()))) == digest(config)
    assert digest({**config, "model": {"dim": 1}}) != digest({**config, "model": {"dim": 2}})
    assert digest({**config, "lr": 1}) == digest({**config, "lr": 1.0})
    assert digest({**config, "flag": True}) != digest({**config, "flag": 1})


def test_through_composition(conf: Path) -> None:
    def config(*overrides: str) -> dict[str, Any]:
        with composer(None, conf) as made:
            return made.jobs(list(overrides), False)[0].config

    plain = config()
    same = config("track=wandb_offline", "launch.nproc=4", "paths.runs=elsewhere", "force=true", "name=x")
    assert digest(plain) == digest(same) and config_hash(plain) != config_hash(same)
    assert digest(plain) != digest(config("model.dim=65"))
    assert group_digest(plain) == group_digest(config("seed=7"))
    path = conf / "model" / "tiny.yaml"
    path.write_text(path.read_text().replace("defaults:\n", "defaults:\n  - extra: none\n"))
    (conf / "model" / "extra").mkdir()
    (conf / "model" / "extra" / "none.yaml").write_text("_target_: pgolf.absent.absent\n")
    later = config()
    assert "extra" in later["model"] and digest(later) == digest(plain)


def test_the_directory_has_name_group_digest_and_seed(conf: Path) -> None:
    with composer(None, conf) as made:
        single = made.jobs(["experiment=big", "seed=3"], False)[0]
        swept = made.jobs(["experiment=big,none", "seed=3"], True)
    expected = f"big-{group_digest(single.config)[:8]}-seed3"
    assert single.directory == Path.cwd() / "runs" / expected
    assert [job.directory.parent for job in swept] == [Path.cwd() / "multirun"] * 2
    assert swept[0].directory.name == expected and swept[1].directory.name.startswith("default-")
    assert run_name({**copy.deepcopy(single.config), "name": "a/b c"}).startswith("a-b-c-")


def test_the_number_of_workers_of_a_preparation_changes_no_digest() -> None:
    one, other = ({"data": {"name": "x", "workers": count}, "model": {"workers": 1}} for count in (None, 8))
    assert digest(one) == digest(other)
    assert digest(one) != digest({**one, "model": {"workers": 2}})


@given(CONFIG)
def test_plain_scoring_is_that_of_a_run_from_before_it_could_be_compiled(config: dict[str, Any]) -> None:
    """Compiled scoring rounds otherwise, and is another evaluation."""
    assert digest({**config, "compile_scoring": False}) == digest(config) != digest({**config, "compile_scoring": True})

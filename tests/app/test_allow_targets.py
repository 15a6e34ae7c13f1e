"""Targets of a package of the user's own are located when the configuration allows them, and not otherwise."""

from pathlib import Path

import pytest

from pgolf.app import signature
from pgolf.app.build import BuildError, build
from pgolf.app.compose import composer
from pgolf.app.schema import check
from pgolf.app.signature import allow, signature_of
from pgolf.digest import digest

MODULE = """
class Own:
    def __init__(self, *, width: int) -> None:
        self.width = width

class Late:
    def __init__(self, model: int, *, width: int) -> None:
        self.width = width
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signature, "_allowed", ())
    return "of_a_user"


def test_own_classes_are_built_when_allowed_and_refused_when_not(own: str) -> None:
    node = {"_target_": f"{own}.Own", "width": 3}
    with pytest.raises(BuildError, match=r"targets outside pgolf are refused.*allow_targets=\[my_package\]"):
        build(node, "ttt")
    allow([own])
    assert build(node, "ttt").width == 3
    with pytest.raises(BuildError, match="targets outside pgolf"):
        build({"_target_": "of_a_user_too.Own"}, "ttt")
    with pytest.raises(BuildError, match="no module"):
        allow(["nowhere_to_be_found"])
        build({"_target_": "nowhere_to_be_found.Own"}, "ttt")
    allow([])
    with pytest.raises(BuildError, match="targets outside pgolf"):
        build(node, "ttt")


def test_own_constructors_follow_the_conventions_of_pgolf(own: str) -> None:
    allow([own])
    late = signature_of(signature.locate(f"{own}.Late"))
    assert late.runtime == ("model",) and list(late.arguments) == ["width"]


@pytest.mark.parametrize("packages", [["os"], ["pgolf"], ["torch.nn"], ["my package"], [""]])
def test_what_is_no_package_of_ones_own_is_refused(packages: list[str], conf: Path) -> None:
    with composer(directory=conf) as made:
        config = made.jobs([], False)[0].config
    problems = [one for one in check(config | {"allow_targets": packages}) if one.key == "allow_targets"]
    assert len(problems) == 1 and "your own packages" in problems[0].message
    assert [one for one in check(config | {"allow_targets": "os"}) if one.key == "allow_targets"]


def test_allowing_changes_no_digest(conf: Path) -> None:
    with composer(directory=conf) as made:
        config = made.jobs([], False)[0].config
    assert digest(config) == digest(config | {"allow_targets": ["my_package"]})

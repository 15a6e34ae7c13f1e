"""What a file's head says that it needs, is what a command line takes."""

from pathlib import Path

import pytest

from pgolf.app.compose import config_directory
from pgolf.app.heads import company, head_comment


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("# It acts.\n", []),
        ("# Needs quant=a train/b=last.\n", ["quant=a", "train/b=last"]),
        ("# @package _global_\n# It acts. Needs a=1; b=2 is another thing.\n", ["a=1"]),
        ("# Needs a=1 or\n# something else.\n", ["a=1"]),
        ("# It needs a=1.\nkey: 1  # Needs b=2\n", []),
    ],
)
def test_company_is_what_follows_the_word(tmp_path: Path, head: str, expected: list[str]) -> None:
    path = tmp_path / "option.yaml"
    path.write_text(head + "_target_: x\n")
    assert company(path) == expected


def test_the_shipped_ternary_options_name_theirs() -> None:
    quant = config_directory() / "quant"
    assert company(quant / "ternary_mlp.yaml") == ["train/averaging=last"]
    assert company(quant / "qat" / "ternary.yaml") == ["quant=ternary_mlp", "train/averaging=last"]
    assert head_comment(quant / "ternary_mlp.yaml").startswith("MLP matrices ternary")

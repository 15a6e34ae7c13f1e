"""Preset files as text: parents, and the sentences that say what is missing."""

from pathlib import Path

import pytest

from pgolf.errors import UserError
from pgolf.report.presets import gaps, lineage, preset_directory, read_presets

OLD = """\
# @package _global_
# An old one.
# Missing: a thing that takes
#   two lines;
#   here another.
# Differs: the second thing.
# Not a note.
defaults:
  - _self_
  - override /scale: full
"""


def write(folder: Path, **files: str) -> dict:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return read_presets(folder)


def test_notes_and_parents(tmp_path: Path) -> None:
    presets = write(
        tmp_path,
        old=OLD,
        new="# Missing: a thing more.\ndefaults:\n  - old\n  - _self_\n",
        newest="# Missing: a thing more.\ndefaults:\n  - new\n",
        none="{}",
    )
    (tmp_path / "notes.txt").touch()
    assert set(presets) == {"old", "new", "newest"}
    assert presets["old"].missing == ("a thing that takes two lines; here another.",)
    assert presets["old"].differs == ("the second thing.",)
    assert [presets[name].parent for name in ("old", "new", "newest")] == [None, "old", "new"]
    assert lineage(presets, "newest") == ["old", "new", "newest"]
    assert gaps(presets, "newest").missing == ["a thing that takes two lines; here another.", "a thing more."]
    assert gaps(presets, "newest").differs == ["the second thing."]


def test_what_is_wrong_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder of presets"):
        read_presets(tmp_path / "nowhere")
    presets = write(tmp_path, a="defaults: [b]", b="defaults: [a]", c="defaults: [d]")
    with pytest.raises(UserError, match="preset b builds on a, which builds on it"):
        lineage(presets, "a")
    with pytest.raises(UserError, match="preset c builds on d, which is not there"):
        gaps(presets, "c")
    with pytest.raises(UserError, match=r"a.yaml is not a preset"):
        write(tmp_path, a="defaults: [b")
    with pytest.raises(UserError, match=r"a.yaml is not a preset"):
        write(tmp_path, a="just words")


def test_the_presets_of_this_version_are_found() -> None:
    assert preset_directory().name == "experiment"
    assert {"naive", "pr1736", "pr2135"} <= set(read_presets(preset_directory()))

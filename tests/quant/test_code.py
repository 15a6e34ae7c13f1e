"""The code archive: deterministic, importable on its own, no larger than it has to be."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from pgolf.errors import UserError
from pgolf.quant import container, packer
from pgolf.quant.code import reachable_modules, strip_source, write_code_archive
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Half, Int8Rows

CHECKOUT = Path(__file__).resolve().parents[2]

LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
import pgolf
assert pgolf.__file__.startswith(sys.argv[1]), pgolf.__file__
import torch
from pgolf.quant import container
state, metadata = container.load(sys.argv[2])
expected = torch.load(sys.argv[3], weights_only=True)
assert list(state) == list(expected)
assert all(torch.equal(state[name], expected[name]) for name in expected)
assert metadata == {"step": 1}
foreign = [
    name for name, module in sys.modules.items()
    if name.split(".")[0] == "pgolf" and not module.__file__.startswith(sys.argv[1])
]
assert not foreign, foreign
print("loaded", len(state))
"""

IMPORT_ALL = """
import importlib, sys, zipfile
sys.path.insert(0, sys.argv[1])
for name in sorted(zipfile.ZipFile(sys.argv[1]).namelist()):
    module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    loaded = importlib.import_module(module)
    assert loaded.__file__.startswith(sys.argv[1]), loaded.__file__
    print(module)
"""


def isolated(script: str, *arguments: Path, cwd: Path) -> str:
    """Run a script in a fresh interpreter that ignores environment and current directory."""
    command = [sys.executable, "-I", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_artifact_loads_with_the_archive_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, gains = torch.randn(9, 7, generator=generator), torch.randn(5, generator=generator)
    tensors = [
        StoredTensor("a.weight", "matrix", "float32", Int8Rows().quantise(matrix, None)),
        StoredTensor("gains", "scalar", "float32", Half().quantise(gains, None)),
    ]
    artifact, archive, expected = (tmp_path / name for name in ("a.pgolf", "code.zip", "e.pt"))
    packer.write(artifact, tensors, {"step": 1}, coder="brotli")
    torch.save(container.load(artifact)[0], expected)
    size = write_code_archive(archive)
    assert size == archive.stat().st_size
    assert isolated(LOAD, archive, artifact, expected, cwd=tmp_path).strip() == "loaded 2"


def test_every_module_of_the_archive_imports_from_it(tmp_path: Path) -> None:
    archive = tmp_path / "code.zip"
    write_code_archive(archive)
    imported = isolated(IMPORT_ALL, archive, cwd=tmp_path).split()
    assert len(imported) == len(zipfile.ZipFile(archive).namelist()) and "pgolf.model.gpt" in imported


def test_the_archive_holds_what_scoring_needs_and_not_the_rest(tmp_path: Path) -> None:
    names = set(reachable_modules(CHECKOUT, ["pgolf.quant.container"]))
    assert {"pgolf", "pgolf.errors", "pgolf.files", "pgolf.quant", "pgolf.quant.coders"} <= names
    assert "pgolf.quant.gptq" not in names and "pgolf.quant.compress" not in names
    write_code_archive(tmp_path / "code.zip")
    files = zipfile.ZipFile(tmp_path / "code.zip").namelist()
    assert "pgolf/model/gpt.py" in files and "pgolf/score/scorer.py" in files
    for folder in ("app", "train", "report", "audit"):
        assert not any(name.startswith(f"pgolf/{folder}/") for name in files), folder


def test_same_sources_same_bytes(tmp_path: Path) -> None:
    write_code_archive(tmp_path / "a.zip")
    write_code_archive(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_what_was_stripped_once_is_read_again_if_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a module that has changed is stripped anew."""
    write_package(
        tmp_path, {"__init__.py": "", "a.py": '"""Doc."""\nVALUE = 1\n', "b.py": "from pgolf.a import VALUE\n"}
    )
    cache, entries = tmp_path / "cache", ["pgolf.b"]

    def written(name: str, cache_root: Path | None = cache) -> dict[str, bytes]:
        write_code_archive(tmp_path / name, entries=entries, root=tmp_path, cache_root=cache_root)
        with zipfile.ZipFile(tmp_path / name) as archive:
            return {one: archive.read(one) for one in archive.namelist()}

    plain = written("plain.zip", None)
    assert plain == written("first.zip") and len(list(cache.rglob("*/*"))) == 3
    with monkeypatch.context() as context:
        context.setattr(ast, "unparse", None)  # would raise TypeError
        assert written("second.zip") == plain
    for file in cache.rglob("*/*"):
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert written("third.zip") == plain
    (tmp_path / "pgolf" / "a.py").write_text("VALUE = 2\n")
    assert written("fourth.zip") == {**plain, "pgolf/a.py": b"VALUE = 2\n"}
    (tmp_path / "pgolf" / "a.py").write_text("from pgolf import c\n")
    write_package(tmp_path, {"c.py": ""})
    assert "pgolf/c.py" in written("fifth.zip")
    (tmp_path / "file").write_text("in the way")
    assert written("sixth.zip", tmp_path / "file") == written("seventh.zip", None)


def write_package(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "pgolf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_imports_are_followed_in_every_form(tmp_path: Path) -> None:
    write_package(
        tmp_path,
        {
            "__init__.py": "",
            "start/__init__.py": "from . import here",
            "start/here.py": "from ..other import thing, Name\nimport numpy, pgolf.plain",
            "other/__init__.py": "",
            "other/thing.py": "def late():\n    from pgolf.later import value\n    return value",
            "plain.py": "",
            "later.py": "value = 1",
            "typing_only.py": "",
            "unused.py": "",
            "hints.py": ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pgolf import typing_only\n"),
        },
    )
    found = set(reachable_modules(tmp_path, ["pgolf.start", "pgolf.hints"]))
    assert found == {
        "pgolf",
        "pgolf.start",
        "pgolf.start.here",
        "pgolf.other",
        "pgolf.other.thing",
        "pgolf.plain",
        "pgolf.later",
        "pgolf.hints",
    }


def test_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pgolf\.nowhere"):
        write_code_archive(tmp_path / "code.zip", entries=["pgolf.nowhere"])
    assert not (tmp_path / "code.zip").exists()


def test_stripping_keeps_the_program(tmp_path: Path) -> None:
    source = (
        '"""Docstring."""\n'
        "import os  # comment\n"
        "class Empty(Exception):\n"
        '    """Only a docstring."""\n'
        "class Full:\n"
        "    value: int = 3\n"
        '    """About value."""\n'
        "    def method(self) -> str:\n"
        '        """Doc."""\n'
        '        return "kept string"\n'
    )
    stripped = strip_source(source)
    assert "ocstring" not in stripped and "comment" not in stripped and "About" not in stripped
    assert "kept string" in stripped
    (tmp_path / "stripped.py").write_text(stripped)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import stripped\n"
        "assert issubclass(stripped.Empty, Exception)\n"
        "print(stripped.Full().method(), stripped.Full.__doc__)"
    )
    assert isolated(script, tmp_path, cwd=tmp_path).strip() == "kept string None"


def test_stripped_modules_equal_their_sources_but_for_strings() -> None:
    for path in reachable_modules(CHECKOUT, ["pgolf.quant.container"]).values():
        once = strip_source(path.read_text("utf-8"))
        assert strip_source(once) == once
        before, after = ast.parse(path.read_text("utf-8")), ast.parse(once)
        statements = [type(node) for node in ast.walk(before) if isinstance(node, ast.stmt)]
        kept = [type(node) for node in ast.walk(after) if isinstance(node, ast.stmt)]
        removed = statements.count(ast.Expr) - kept.count(ast.Expr)
        assert len(statements) - len(kept) == removed - kept.count(ast.Pass)

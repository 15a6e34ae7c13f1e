"""The code as one file: it runs alone, is smaller than the archive, and is the same every time."""

from pathlib import Path

import pytest
import python_minifier
import torch

from pgolf.errors import UserError
from pgolf.quant import container, packer
from pgolf.quant.code import RUN_ENTRIES, modules_of, reachable_modules, write_code_archive
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Half, Int8Rows
from pgolf.quant.wrapper import _literal, minified, write_wrapper
from tests.quant.test_code import CHECKOUT, isolated, write_package

LOAD = """
import inspect, os, runpy, sys
runpy.run_path(sys.argv[1])
from pgolf.quant import container
state, metadata = container.load(sys.argv[2])
import torch
expected = torch.load(sys.argv[3], weights_only=True)
assert all(torch.equal(state[name], expected[name]) for name in expected) and list(state) == list(expected)
loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "pgolf"]
assert not any(os.path.isabs(getattr(module, "__file__", None) or "") for module in loaded)
assert inspect.getsource(container.load).startswith("def load(")
print("loaded", len(state))
"""
IMPORT_ALL = """
import importlib, runpy, sys
names = runpy.run_path(sys.argv[1])["S"]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def test_an_artifact_loads_with_the_file_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix, gains = torch.randn(90, 70, generator=generator), torch.randn(5, generator=generator)
    tensors = [
        StoredTensor("a.weight", "matrix", "float32", Int8Rows().quantise(matrix, None)),
        StoredTensor("gains", "scalar", "float32", Half().quantise(gains, None)),
    ]
    artifact, wrapper, expected = (tmp_path / name for name in ("a.pgolf", "wrapper.py", "e.pt"))
    packer.write(artifact, tensors, {"step": 1}, coder="rans")
    torch.save(container.load(artifact)[0], expected)
    size = write_wrapper(wrapper, entries=["pgolf.quant.container"])
    assert size == wrapper.stat().st_size < 0.7 * write_code_archive(tmp_path / "c", entries=["pgolf.quant.container"])
    assert isolated(LOAD, wrapper, artifact, expected, cwd=tmp_path).strip() == "loaded 2"
    again = tmp_path / "again.py"
    write_wrapper(again, entries=["pgolf.quant.container"])
    assert again.read_bytes() == wrapper.read_bytes()


def test_every_module_that_training_needs_imports_from_the_file(tmp_path: Path) -> None:
    entries = [*RUN_ENTRIES, "pgolf.model.gpt", "pgolf.optim.muon", "pgolf.train.loop", "pgolf.ttt.phased"]
    write_wrapper(tmp_path / "wrapper.py", entries=entries)
    count = isolated(IMPORT_ALL, tmp_path / "wrapper.py", cwd=tmp_path)
    assert int(count) == len(reachable_modules(CHECKOUT, entries))


def test_every_byte_survives_the_literal() -> None:
    data = bytes(range(256)) + b"\x000\\x00'\r\n\\"
    literal = f"# coding: latin-1\nx = '{_literal(data)}'.encode('latin-1')\n".encode("latin-1")
    scope: dict[str, bytes] = {}
    exec(compile(literal, "literal", "exec"), scope)
    assert scope["x"] == data


def test_minifying_keeps_what_others_import(tmp_path: Path) -> None:
    source = (
        '"""Doc."""\n'
        "def public(argument: int, *, keyword: int = 2) -> int:\n"
        "    longer_name = argument + keyword\n"
        "    return longer_name\n"
    )
    small = minified(source)
    assert "longer_name" not in small and "Doc" not in small
    scope: dict[str, object] = {}
    exec(small, scope)
    assert scope["public"](argument=1, keyword=3) == 4  # type: ignore[operator]


def test_modules_that_a_configuration_names() -> None:
    node = {
        "a": {"_target_": "pgolf.quant.schemes.Gptq", "bits": 6},
        "b": [{"_target_": "pgolf.train.loop.Trainer"}, {"_target_": "torch.optim.SGD"}, 3],
    }
    assert modules_of(node) == ["pgolf.quant.schemes", "pgolf.train.loop"]


def test_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    write_package(tmp_path, {"__init__.py": ""})
    with pytest.raises(UserError, match=r"pgolf\.nowhere"):
        write_wrapper(tmp_path / "w.py", entries=["pgolf.nowhere"], root=tmp_path)
    assert not (tmp_path / "w.py").exists()


def test_what_was_minified_once_is_read_again_if_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, cache = ["pgolf.quant.container"], tmp_path / "cache"
    plain, first, second, third = (tmp_path / f"{name}.py" for name in ("plain", "first", "second", "third"))
    write_wrapper(plain, entries=entries)
    write_wrapper(first, entries=entries, cache_root=cache)
    kept = sorted(path for path in cache.rglob("*") if path.is_file())
    assert len(kept) == len({path.read_text("utf-8") for path in reachable_modules(CHECKOUT, entries).values()})

    whole = kept[0].read_bytes()
    minified.cache_clear()
    with monkeypatch.context() as context:
        context.setattr(python_minifier, "minify", None)  # would raise TypeError
        write_wrapper(second, entries=entries, cache_root=cache)
    kept[0].write_bytes(whole[:-1])
    write_wrapper(third, entries=entries, cache_root=cache)
    assert kept[0].read_bytes() == whole
    assert plain.read_bytes() == first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    write_wrapper(tmp_path / "a.py", entries=["pgolf.errors"], cache_root=tmp_path / "file")
    write_wrapper(tmp_path / "b.py", entries=["pgolf.errors"])
    assert (tmp_path / "a.py").read_bytes() == (tmp_path / "b.py").read_bytes()

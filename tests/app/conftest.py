"""A small configuration with fake parts: composed in this process, or run in real processes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pgolf

HERE = Path(__file__).parent
CONF = HERE / "conf"
SITE = HERE / "site"
CHECKOUT = HERE.parent.parent
REAL_CONF = CHECKOUT / "conf"


def _load(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SITE / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fakes() -> Iterator[None]:
    """`pgolf.run` and `pgolf.fakes` are fakes in this process; sitecustomize does it in others."""
    names = {"pgolf.run": "fake_run.py", "pgolf.fakes": "fake_parts.py"}
    missing = object()
    before = {name: sys.modules.get(name) for name in names}
    attribute = getattr(pgolf, "run", missing)
    for name, file in names.items():
        setattr(pgolf, name.removeprefix("pgolf."), _load(name, file))
    yield
    for name, module in before.items():
        if module is None:
            del sys.modules[name]
        else:
            sys.modules[name] = module
    if attribute is missing:
        del pgolf.run
    else:
        pgolf.run = attribute  # type: ignore[attr-defined]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of the small configuration that a test may spoil."""
    return Path(shutil.copytree(CONF, tmp_path / "conf"))


Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """The environment of a real process that sees the fakes."""
    path = os.pathsep.join([str(SITE), str(CHECKOUT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def command(*arguments: str, conf: Path = CONF) -> list[str]:
    """`python -m pgolf` with the small configuration."""
    verb = arguments[:1] if arguments and "=" not in arguments[0] and arguments[0][0] != "-" else ()
    rest = arguments[len(verb) :]
    return [sys.executable, "-m", "pgolf", *verb, "--config-path", str(conf), *rest]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """An empty directory to run in."""
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def pgolf_process(work: Path) -> Run:
    """Run the command line in a real process, in an empty directory."""

    def run(*arguments: str, conf: Path = CONF) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments, conf=conf),
            cwd=work,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run

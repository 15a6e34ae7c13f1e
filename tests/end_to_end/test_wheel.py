"""What is shipped works: a wheel in an environment of its own, used outside the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from .conftest import CHECKOUT, environment


def run(python: Path | str, *arguments: str, cwd: Path) -> str:
    """Output of a Python process that sees no source but its own environment's."""
    clean = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments], cwd=cwd, env=clean, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the built wheel installed, and the libraries of this environment beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, *build, "--wheel-dir", str(folder), str(CHECKOUT), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"), cwd=folder)
    installed = folder / "venv" / "bin" / "python"
    packages = Path(run(installed, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed


def test_the_wheel_brings_its_configuration(python: Path, tmp_path: Path) -> None:
    where = "import pgolf; from pgolf.app.compose import config_directory as d; print(pgolf.__file__, d(), sep='\\n')"
    module, conf = run(python, "-c", where, cwd=tmp_path).splitlines()
    assert Path(module).is_relative_to(python.parent.parent)
    assert Path(conf) == Path(module).parent / "conf"
    shipped = {path.relative_to(conf) for path in Path(conf).rglob("*.yaml")}
    assert shipped == {path.relative_to(CHECKOUT / "conf") for path in (CHECKOUT / "conf").rglob("*.yaml")}
    composed = run(python, "-m", "pgolf", "--cfg", "job", "model.dim=72", cwd=tmp_path)
    assert "dim: 72" in composed and "_target_: pgolf.model.gpt.GPT" in composed
    assert list(tmp_path.iterdir()) == []


def test_the_presets_are_listed(python: Path, tmp_path: Path) -> None:
    shown = run(python, "-m", "pgolf", "records", cwd=tmp_path)
    presets = [path.stem for path in (CHECKOUT / "conf" / "experiment").glob("pr*.yaml")]
    assert shown.strip() and [name for name in presets if name not in shown] == []
    assert list(tmp_path.iterdir()) == []

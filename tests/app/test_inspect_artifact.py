"""`pgolf inspect artifact=FILE`: the bytes by tensor and class, the distance to the entropy, and the picture."""

from pathlib import Path

import pytest

from pgolf.app.verbs import inspect
from pgolf.errors import ConfigError, UserError
from tests.quant.small import artifact


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    artifact(tmp_path / "artifact.pgolf", "brotli")
    return tmp_path


def test_a_run_directory_or_its_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (directory / "artifact.pgolf").stat().st_size
    for place in (directory, directory / "artifact.pgolf"):
        assert inspect.main([f"artifact={place}"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"{size:,} bytes, coder brotli" in shown
        for word in ("blocks.2.weight", "int8 rows", "gain", "float16", "(header)", "over order 0", "bits a weight"):
            assert word in shown


def test_the_picture_is_drawn(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = directory / "new" / "a.png"
    assert inspect.main([f"artifact={directory}", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert "drawn in" in capsys.readouterr().out


def test_what_is_wrong_is_said(directory: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        inspect.main([f"artifact={directory / 'nothing'}"])
    with pytest.raises(ConfigError, match=r"seed=1: artifact=FILE describes itself"):
        inspect.main([f"artifact={directory}", "seed=1"])
    (directory / "artifact.pgolf").write_bytes(b"PGOLF")
    with pytest.raises(UserError, match="not a pgolf artifact"):
        inspect.main([f"artifact={directory}"])

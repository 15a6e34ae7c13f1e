"""`pgolf inspect artifact=FILE`: the bytes by tensor and class, the distance to the entropy, and the picture."""

from pathlib import Path

import pytest
import torch

from pgolf.app.verbs import inspect
from pgolf.errors import ConfigError, UserError
from pgolf.quant import packer
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Half, Int8Rows


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = [
        StoredTensor(
            f"blocks.{i}.weight", "matrix", "float32", Int8Rows().quantise(torch.randn(90, 70, generator=generator))
        )
        for i in range(3)
    ]
    tensors.append(StoredTensor("gain", "scalar", "float32", Half().quantise(torch.randn(50, generator=generator))))
    packer.write(tmp_path / "artifact.pgolf", tensors, {}, coder="brotli")
    return tmp_path


def test_a_run_directory_or_its_file(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (directory / "artifact.pgolf").stat().st_size
    for artifact in (directory, directory / "artifact.pgolf"):
        assert inspect.main([f"artifact={artifact}"]) == 0
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

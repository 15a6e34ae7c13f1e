"""The byte account: both readings, the one that decides, and what would save most."""

from pathlib import Path

import pytest
import torch

from pgolf.app.table import over_the_limit
from pgolf.quant import packer
from pgolf.quant.budget import SAVINGS, artifact_bytes, savings, write_code
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Half, Int8Rows


def directory(path: Path, coder: str = "brotli") -> Path:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 80, generator=generator)
    tensors = [
        StoredTensor("a.weight", "matrix", "float32", Int8Rows().quantise(weight)),
        StoredTensor("b.weight", "embedding", "float32", Half().quantise(weight[:50])),
    ]
    path.mkdir(exist_ok=True)
    packer.write(path / "artifact.pgolf", tensors, {}, coder=coder)
    (path / "code.zip").write_bytes(b"x" * 700)
    (path / "wrapper.py").write_bytes(b"x" * 300)
    return path


def test_both_readings_and_the_one_that_decides(tmp_path: Path) -> None:
    size = (directory(tmp_path) / "artifact.pgolf").stat().st_size
    limit = size + 500
    account = artifact_bytes(tmp_path, limit)
    wrapped = {"code_bytes": 300, "total_bytes": size + 300, "margin_bytes": 200, "fits": True}
    shipped = {"code_bytes": 700, "total_bytes": size + 700, "margin_bytes": -200, "fits": False}
    assert account == {
        "weight_bytes": size,
        "limit_bytes": limit,
        "reading": "wrapped",
        "readings": {"wrapped": wrapped, "shipped": shipped},
        **wrapped,
    }
    assert over_the_limit(account) is None
    strict = artifact_bytes(tmp_path, limit, "shipped")
    assert (strict["fits"], strict["code_bytes"], strict["reading"]) == (False, 700, "shipped")
    assert artifact_bytes(tmp_path, size + 700, "shipped")["fits"]  # the limit itself fits


def test_what_is_over_the_limit_says_by_how_much_and_what_saves_most(tmp_path: Path) -> None:
    account = artifact_bytes(directory(tmp_path), 10_000, "shipped")
    sentence = over_the_limit(account)
    assert sentence is not None
    assert f"over the limit by {account['total_bytes'] - 10_000:,} bytes" in sentence
    assert len(account["savings"]) == SAVINGS
    assert all(one["change"] in sentence for one in account["savings"])
    assert "quant.target_bytes=9300 " in sentence


def test_savings_are_what_comes_of_them(tmp_path: Path) -> None:
    path = directory(tmp_path) / "artifact.pgolf"
    found = {one.change.split(":")[0]: one for one in savings(path, code_saved=10**6)}
    assert next(iter(found)) == "quant.reading=wrapped" and found["quant.reading=wrapped"].exact
    assert found["quant.matrix"].bytes == pytest.approx(300 * 80 / 8, rel=0.1)  # one bit a weight
    other = directory(tmp_path / "other", "rans") / "artifact.pgolf"
    changes = [one.change for one in savings(other)]
    assert not any("rans" in change or "reading" in change for change in changes)
    found = {one.change.split("=")[0]: one for one in savings(path)}
    assert found["quant.min_quantised_elements: matrices that are stored as floats in eight bits"].bytes == 50 * 80
    if "quant.coder" in found:
        assert found["quant.coder"].bytes == path.stat().st_size - other.stat().st_size


def test_the_code_is_written_in_both_forms(tmp_path: Path) -> None:
    write_code(tmp_path, ["pgolf.errors"])
    assert (tmp_path / "code.zip").stat().st_size > 0 and (tmp_path / "wrapper.py").read_bytes().startswith(b"# coding")

"""The account of an artifact: sums to the byte, entropy as the yardstick."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.errors import UserError
from pgolf.quant import packer
from pgolf.quant.account import account, entropy_bits, total
from pgolf.quant.code import decoder_bytes
from pgolf.quant.coders import CODERS
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Int8Rows
from tests.quant.small import artifact


@pytest.mark.parametrize("coder", ["rans", "brotli", "none"])
@pytest.mark.parametrize("row_order", ["stored", "similarity"])
def test_tensors_and_classes_add_up_to_the_file(tmp_path: Path, coder: str, row_order: packer.RowOrder) -> None:
    path = artifact(tmp_path / "a", coder, row_order)
    result = account(path)
    assert result["total_bytes"] == path.stat().st_size
    for rows in (result["tensors"], result["classes"]):
        assert result["header_bytes"] + sum(row["bytes"] for row in rows) == path.stat().st_size
    matrix, gain = result["classes"]
    assert (matrix["tensors"], matrix["elements"], gain["symbol_bytes"]) == (3, 3 * 6300, None)
    assert matrix["bits_per_weight"] == pytest.approx(8 * matrix["bytes"] / matrix["elements"])
    low, high = {"rans": (0.95, 1.06), "brotli": (1.0, 1.15), "none": (1.05, 1.4)}[coder]
    assert low < matrix["over_entropy"] < high


def test_the_adaptive_bound_is_what_the_coder_of_matrices_comes_near(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1, 256, generator=generator).mul(0.4).exp()
    weights = [torch.randn(512, 256, generator=generator) * spread for _ in range(2)]
    tensors = [StoredTensor(f"w{i}", "matrix", "float32", Int8Rows().quantise(one)) for i, one in enumerate(weights)]
    for coder, low, high in (("rans", 0.99, 1.005), ("brotli", 1.01, 1.2)):
        packer.write(tmp_path / coder, tensors, {}, coder=coder)
        result = account(tmp_path / coder)
        whole = total(result["classes"])
        assert low < whole["over_adaptive"] < high
        assert whole["adaptive_bytes"] < 0.99 * whole["entropy_bytes"]
        assert whole["symbol_bytes"] == sum(row["symbol_bytes"] for row in result["tensors"])


def test_entropy() -> None:
    assert entropy_bits(np.array([1, 1, 2, 2], np.int8)) == pytest.approx(4.0)
    assert entropy_bits(np.zeros(9, np.float16)) == 0.0
    assert entropy_bits(np.zeros((0, 3), np.int8)) == 0.0


def test_a_damaged_file_has_no_account(tmp_path: Path) -> None:
    path = artifact(tmp_path / "a", "rans")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        account(path)


def test_the_code_of_every_decoder_is_counted() -> None:
    sizes = {coder: decoder_bytes(coder) for coder in CODERS}
    assert 2500 < sizes["rans"] < 6000
    assert sizes["none"] < sizes["zlib"] < sizes["lrzip"] < sizes["rans"]

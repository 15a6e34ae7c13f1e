"""A small artifact that tests of reading and counting share."""

from pathlib import Path

import torch

from pgolf.quant import packer
from pgolf.quant.container import StoredTensor
from pgolf.quant.schemes import Half, Int8Rows


def artifact(path: Path, coder: str, row_order: packer.RowOrder = "stored") -> Path:
    """Three matrices in int8 and one vector in float16, written to `path`."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        StoredTensor(
            f"blocks.{i}.weight", "matrix", "float32", Int8Rows().quantise(torch.randn(90, 70, generator=generator))
        )
        for i in range(3)
    ]
    tensors.append(StoredTensor("gain", "scalar", "float32", Half().quantise(torch.randn(50, generator=generator))))
    packer.write(path, tensors, {}, coder=coder, row_order=row_order)
    return path

"""What the kernels share: whether they are interpreted, the dtype that sums are kept in, tiles of matrix products."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


def interpreted() -> bool:
    """Whether triton runs kernels with numpy on a CPU (TRITON_INTERPRET=1 before it was imported)."""
    return not isinstance(_nothing, triton.runtime.JITFunction)


@triton.jit
def _nothing() -> None:
    pass


def wide(dtype: torch.dtype) -> Any:
    """The dtype that a kernel computes in: fp64 of fp64, else fp32."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision_of_products(dtype: torch.dtype) -> str:
    """TF32 where torch allows it for its own products of fp32."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


class Tiles(NamedTuple):
    """Sides of the tiles of a product [m, k] x [k, n], and how a GPU works on one."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


HOPPER = Tiles(128, 256, 64, 8, 4)  # as published (PR 1667): 192 KiB of shared memory
SIXTEEN_BIT = Tiles(128, 128, 32, 4, 4)  # 64 KiB: fits any GPU with bf16
WIDE = Tiles(64, 64, 32, 4, 2)
LARGE = (9, 10)  # compute capabilities with the shared memory for HOPPER; that of later GPUs for desks (12) is 99 KiB
INTERPRETED = Tiles(32, 32, 32, 4, 1)


def tiles(x: Tensor) -> Tiles:
    """The tiles for products of tensors like x."""
    if x.device.type == "cpu":
        return INTERPRETED
    if x.element_size() > 2:
        return WIDE
    return HOPPER if torch.cuda.get_device_capability(x.device)[0] in LARGE else SIXTEEN_BIT

"""What the interpreter runs, the compiler takes: every fused kernel compiled for a Hopper GPU that is not needed."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pgolf.kernels.fused.launch import HOPPER, SIXTEEN_BIT, WIDE
from tests.kernels.fused.cases import NAMES

SHARED = 227 * 1024  # bytes of shared memory that a program may have on Hopper
SMALL = 99 * 1024  # and on the smallest GPU with bf16
KERNELS = {
    "mlp._up_kernel",
    "mlp._slopes_kernel",
    "symmetric._kernel",
    *(f"{name}.{way}" for name in NAMES[1:4] for way in ("_forward_kernel", "_backward_kernel")),
}


@pytest.mark.skipif(platform.system() != "Linux", reason="triton has no compiler here")
def test_every_kernel_compiles_for_hopper(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.fused.compiled", "90"]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {one["kernel"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == KERNELS
    assert all(one["shared"] <= SMALL for one in found.values())
    assert {name for name, one in found.items() if one["tensor_cores"]} == {
        name for name in KERNELS if is_product(name)
    }


def is_product(name):
    return name.startswith(("mlp.", "symmetric."))


@pytest.mark.parametrize(("tiles", "element", "most"), [(HOPPER, 2, SHARED), (SIXTEEN_BIT, 2, SMALL), (WIDE, 8, SMALL)])
def test_tiles_fit_into_shared_memory(tiles, element, most):
    assert tiles.stages * (tiles.m + tiles.n) * tiles.k * element <= most

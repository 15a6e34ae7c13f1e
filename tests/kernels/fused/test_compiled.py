"""What the interpreter runs, the compiler takes: every fused kernel compiled for a Hopper GPU that is not needed."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pgolf.kernels.fused.launch import HOPPER, SIXTEEN_BIT, WIDE, tiles
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
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {one["kernel"]: one for one in lines if one["tiles"] == "small"}
    assert found.keys() == KERNELS
    assert all(one["shared"] <= SMALL for one in found.values())
    products = {name for name in KERNELS if is_product(name)}
    assert {name for name, one in found.items() if one["tensor_cores"]} == products
    large = {one["kernel"]: one for one in lines if one["tiles"] == "hopper"}
    assert large.keys() == products and all(one["tensor_cores"] and one["ahead"] for one in large.values())
    assert all(SMALL < one["shared"] <= SHARED for one in large.values())


def is_product(name):
    return name.startswith(("mlp.", "symmetric."))


@pytest.mark.parametrize(("tiles", "element", "most"), [(HOPPER, 2, SHARED), (SIXTEEN_BIT, 2, SMALL), (WIDE, 8, SMALL)])
def test_tiles_fit_into_shared_memory(tiles, element, most):
    assert tiles.stages * (tiles.m + tiles.n) * tiles.k * element <= most


@pytest.mark.parametrize(("capability", "fits"), [((8, 9), SIXTEEN_BIT), ((9, 0), HOPPER), ((12, 0), SIXTEEN_BIT)])
def test_large_tiles_for_gpus_with_the_memory_for_them(monkeypatch, capability, fits):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert tiles(torch.empty(1, 1, dtype=torch.bfloat16, device="meta")) == fits
    assert tiles(torch.empty(1, 1, device="meta")) == WIDE

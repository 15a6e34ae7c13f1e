"""What the tests of all fused kernels share."""

import importlib

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu" and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
    pytest.skip(f"triton {triton.__version__} cannot interpret loops with numpy 2.4", allow_module_level=True)
NAMES = ("mlp", "cross_entropy", "norm_rotary", "smear_norm", "symmetric")
PRODUCTS = ("mlp", "symmetric")  # the interpreter cannot multiply matrices of bf16


def module(name):
    return importlib.import_module(f"pgolf.kernels.fused.{name}")


def example(name, dtype=torch.float32):
    return module(name).example(DEVICE, dtype, torch.Generator().manual_seed(3))


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def outputs(made):
    return [made] if isinstance(made, torch.Tensor) else list(made)


def with_gradients(function, inputs, *rest):
    """The outputs, and the gradients of a fixed weighted sum of them by every input that can have one."""
    leaves = [x.detach().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs]
    made = outputs(function(*leaves, *rest))
    slopes = [randn(*one.shape, seed=7).to(one.dtype) for one in made]
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    return [one.detach() for one in made] + list(torch.autograd.grad(made, wanted, slopes))


def wide(inputs):
    return [x.double() if x is not None and x.is_floating_point() else x for x in inputs]


def disagreements(kernel, inputs, *rest, tolerance=1e-5, floor=0.0):
    """Where a kernel in the dtype of its inputs and its reference in fp64 differ, in outputs or gradients, relative to
    the largest value, or to `floor` where that is larger."""
    got, exact = with_gradients(kernel.fused, inputs, *rest), with_gradients(kernel.reference, wide(inputs), *rest)
    found = []
    for place, (a, b) in enumerate(zip(got, exact, strict=True)):
        error, size = (a.double() - b).abs().max() if b.numel() else 0.0, b.abs().max() if b.numel() else 1.0
        if a.shape != b.shape or not error <= tolerance * max(size, floor) + 1e-30:
            found.append(f"{place}: {float(error):.3g} of {float(size):.3g}")
    return found

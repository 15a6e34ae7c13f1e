"""Every fused kernel, interpreted where there is no GPU, against its plain reference in fp64."""

import pytest
import torch

from tests.kernels.fused.cases import DEVICE, NAMES, PRODUCTS, disagreements, example, module, outputs, with_gradients

HALF = [(name, dtype) for name in NAMES for dtype in (torch.float16, torch.bfloat16)]
INTERPRETED = [(name, dtype) for name, dtype in HALF if name not in PRODUCTS or dtype != torch.bfloat16]
OPERATIONS = {
    "mlp": ("forward", "slopes"),
    "cross_entropy": ("forward", "backward"),
    "norm_rotary": ("forward", "backward"),
    "smear_norm": ("forward", "backward"),
    "symmetric": ("forward",),
}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_agree_with_the_reference_in_fp64(name):
    tensors, rest = example(name)
    assert not disagreements(module(name), tensors, *rest)


@pytest.mark.parametrize(("name", "dtype"), HALF if DEVICE.type == "cuda" else INTERPRETED)
def test_half_precision_rounds_what_it_writes_and_no_more(name, dtype):
    """Two roundings of the mantissa, not a sum in half precision."""
    tensors, rest = example(name, dtype)
    assert not disagreements(module(name), tensors, *rest, tolerance=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_by_finite_differences_in_fp64(name):
    tensors, rest = example(name)
    inputs = [one.double().requires_grad_() for one in tensors]
    assert torch.autograd.gradcheck(lambda *given: module(name).fused(*given, *rest), inputs, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_registration_is_sound(name):
    """Schema, fake implementation and autograd, as torch checks them."""
    kernel = module(name)
    calls = {"slopes": backward_calls, "backward": backward_calls}
    for operation in OPERATIONS[name]:
        arguments = calls[operation](name) if operation in calls else forward_calls(name)
        torch.library.opcheck(getattr(kernel, operation), arguments)


def forward_calls(name):
    tensors, rest = example(name)
    if name == "mlp":
        tensors[0] = tensors[0].flatten(0, 1)
    if name == "smear_norm":
        rest = [torch.float32]
    return tuple(one.requires_grad_() for one in tensors) + tuple(rest)


def backward_calls(name):
    tensors, rest = example(name)
    if name == "mlp":
        x, up, down = tensors
        return x.flatten(0, 1), down, x.flatten(0, 1) @ up.T, *rest
    if name == "cross_entropy":
        (scores,), (targets, cap) = tensors, rest
        losses, lse = module(name).reference(scores, targets, cap)
        return scores, targets, lse, torch.ones_like(losses), torch.ones_like(lse), cap
    return torch.ones_like(tensors[0]), *tensors, *rest


@pytest.mark.parametrize("name", NAMES)
def test_it_is_part_of_one_graph(name):
    """torch.compile(fullgraph=True), forward and backward, gives what the kernel gives."""
    tensors, rest = example(name)
    kernel = module(name)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *given: outputs(kernel.fused(*given)), fullgraph=True, backend="aot_eager")
    got, expected = with_gradients(compiled, tensors, *rest), with_gradients(kernel.fused, tensors, *rest)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_is_a_view_gives_the_same(name):
    """Strides are the caller's; the kernels read what is contiguous. To the last bit, unless a GPU's library takes
    another kernel for products of the backward."""
    tensors, rest = example(name)
    apart = [torch.stack((one, one), dim=-1)[..., 0] for one in tensors]
    assert not any(one.is_contiguous() for one in apart)
    kernel = module(name)
    got, expected = with_gradients(kernel.fused, apart, *rest), with_gradients(kernel.fused, tensors, *rest)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b) if DEVICE.type == "cpu" else torch.allclose(a, b, rtol=1e-5, atol=1e-6)

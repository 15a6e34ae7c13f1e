"""AdamW of the records: torch's, and fp32 moments for 16-bit weights."""

import copy
from functools import partial

import pytest
import torch

from pgolf.optim.adam import AdamW

SETTINGS = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-8}


def run(make, dtype, steps=6):
    parameter = torch.nn.Parameter(torch.linspace(-2, 2, 24).reshape(4, 6).to(dtype))
    optimizer = make([parameter])
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        parameter.grad = torch.randn(4, 6, generator=generator).to(dtype)
        optimizer.step()
    return parameter, optimizer


def test_it_is_torchs_and_adam_without_weight_decay():
    ours, _ = run(partial(AdamW, **SETTINGS, weight_decay=0.1), torch.float32)
    theirs, _ = run(partial(torch.optim.AdamW, **SETTINGS, weight_decay=0.1), torch.float32)
    assert torch.equal(ours, theirs)
    ours, _ = run(partial(AdamW, **SETTINGS, weight_decay=0.0), torch.float32)
    theirs, _ = run(partial(torch.optim.Adam, **SETTINGS), torch.float32)
    assert torch.equal(ours, theirs)


def test_moments_of_a_bf16_weight_are_bf16_as_published_or_fp32():
    for moments, dtype in {"as_parameter": torch.bfloat16, "fp32": torch.float32}.items():
        parameter, optimizer = run(partial(AdamW, **SETTINGS, weight_decay=0.1, moments=moments), torch.bfloat16)
        state = optimizer.state[parameter]
        assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {dtype}
        assert parameter.dtype == parameter.grad.dtype == torch.bfloat16


def test_fp32_moments_round_the_weight_alone():
    """One step in fp32 from the bf16 weight and gradient, rounded once."""
    start = torch.linspace(-2, 2, 24).reshape(4, 6).bfloat16()
    wide = torch.nn.Parameter(start.float())
    reference = torch.optim.AdamW([wide], **SETTINGS, weight_decay=0.1)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = AdamW([parameter], **SETTINGS, weight_decay=0.1, moments="fp32")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        parameter.grad = torch.randn(4, 6, generator=generator).bfloat16()
        wide.data.copy_(parameter.data.float())
        wide.grad = parameter.grad.float()
        optimizer.step()
        reference.step()
        assert torch.equal(parameter, wide.bfloat16())


@pytest.mark.parametrize("moments", ["as_parameter", "fp32"])
def test_a_state_continues_to_the_same_bits(moments):
    make = partial(AdamW, **SETTINGS, weight_decay=0.1, moments=moments)
    parameter, optimizer = run(make, torch.bfloat16)
    again = torch.nn.Parameter(parameter.detach().clone())
    other = make([again])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        again.grad = parameter.grad
        optimizer.step()
        other.step()
    assert torch.equal(parameter, again)
    for name, value in optimizer.state[parameter].items():
        assert torch.equal(other.state[again][name], value), name

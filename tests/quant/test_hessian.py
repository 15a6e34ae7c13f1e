"""Calibration: sums, sharing, hooks that leave no trace."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from pgolf.errors import UserError
from pgolf.quant.hessian import Calibration, HessianCollector, collect_hessians


class Block(nn.Module):
    """Two maps that read one tensor, a third that reads another; run `loops` times."""

    def __init__(self, loops: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.query, self.key, self.out = (nn.Linear(6, 6, bias=False) for _ in range(3))
        for weight in self.parameters():
            weight.data.normal_(generator=generator)
        self.loops = loops
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.loops):
            self.seen.append(x.detach().clone())
            x = self.out(torch.tanh(self.query(x) * self.key(x)))
        return x


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 5, 6, generator=generator) for _ in range(count)]


def runs(model: nn.Module, inputs: list[Tensor]) -> list[Callable[[], Tensor]]:
    return [partial(model, x) for x in inputs]


def gram(inputs: list[Tensor]) -> Tensor:
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs]).double()
    return rows.t() @ rows


def test_sum_over_calls_divided_by_batches() -> None:
    model = Block(loops=3)
    hessians = collect_hessians({"q": model.query, "out": model.out}, runs(model, batches(4)))
    assert len(model.seen) == 12
    expected = gram(model.seen) / 4
    torch.testing.assert_close(hessians["q"].hessian.double(), expected, rtol=1e-5, atol=1e-5)
    assert hessians["q"].hessian.dtype == torch.float32
    assert not torch.allclose(hessians["q"].hessian, hessians["out"].hessian)


def test_one_input_tensor_is_multiplied_once_and_shared() -> None:
    model = Block()
    sites = {"q": model.query, "k": model.key, "tied": model.query, "out": model.out}
    calls: list[Tensor] = []
    hessians = collect_hessians(sites, runs(model, batches(2)), add_up=calls.append)
    assert hessians["q"].hessian is hessians["k"].hessian is hessians["tied"].hessian
    assert hessians["out"].hessian is not hessians["q"].hessian
    assert len(calls) == 3  # the number of batches, and two sums
    torch.testing.assert_close(hessians["q"].hessian.double(), gram(model.seen) / 2, rtol=1e-5, atol=1e-5)


def test_inputs_are_counted_and_give_their_root_mean_square() -> None:
    model = Block(loops=3)
    calibration = collect_hessians({"q": model.query}, runs(model, batches(4)))["q"]
    assert calibration.inputs == 3 * 2 * 5
    rows = torch.cat([x.reshape(-1, 6) for x in model.seen])
    torch.testing.assert_close(calibration.input_rms(), rows.square().mean(dim=0).sqrt())
    assert Calibration(torch.eye(2) * 8, 2.0).input_rms().tolist() == [2.0, 2.0]


def test_a_change_in_place_is_not_mistaken_for_the_same_input() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    x = torch.ones(2, 3)

    def run() -> None:
        first(x)
        x.mul_(2)
        second(x)

    hessians = collect_hessians({"first": first, "second": second}, [run])
    assert torch.equal(hessians["first"].hessian, torch.full((3, 3), 2.0))
    assert torch.equal(hessians["second"].hessian, torch.full((3, 3), 8.0))


def test_inference_mode_and_bfloat16_inputs() -> None:
    module = nn.Linear(3, 3, dtype=torch.bfloat16)
    x = torch.full((4, 3), 3.0, dtype=torch.bfloat16)

    def run() -> None:
        with torch.inference_mode():
            module(x + 0)
            module(x * 2)

    hessian = collect_hessians({"m": module}, [run])["m"].hessian
    assert hessian.dtype == torch.float32
    assert torch.equal(hessian, torch.full((3, 3), 4 * 9.0 + 4 * 36.0))


def test_forward_is_unchanged_and_hooks_are_removed() -> None:
    model = Block(loops=2)
    (x,) = batches(1)
    before = model(x)
    with HessianCollector({"q": model.query, "out": model.out}):
        during = model(x)
    assert torch.equal(before, during)
    assert torch.equal(before, model(x))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    model = Block()

    def fail() -> None:
        model(batches(1)[0])
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        collect_hessians({"q": model.query}, [fail])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gradients_still_flow_through_a_listened_forward() -> None:
    model = Block()
    (x,) = batches(1)
    model(x).sum().backward()
    expected = model.query.weight.grad
    assert expected is not None
    model.zero_grad(set_to_none=True)
    with HessianCollector({"q": model.query}) as collector:
        model(x).sum().backward()
    assert model.query.weight.grad is not None
    assert torch.equal(model.query.weight.grad, expected)
    assert not collector.result(1)["q"].hessian.requires_grad


def test_what_all_ranks_saw_is_divided_by_all_their_batches() -> None:
    module, others = nn.Linear(2, 2), iter([torch.tensor(3.0), torch.full((2, 2), 7.0)])
    hessians = collect_hessians(
        {"m": module}, [lambda: module(torch.ones(1, 2))], add_up=lambda own: own.add_(next(others))
    )
    assert torch.equal(hessians["m"].hessian, torch.full((2, 2), 2.0))


def test_a_site_that_is_never_called_is_named() -> None:
    model, unused = Block(), nn.Linear(2, 2)
    with pytest.raises(UserError, match="unused"):
        collect_hessians({"q": model.query, "unused": unused}, runs(model, batches(1)))


def test_no_batch_is_an_error() -> None:
    with pytest.raises(UserError, match="calibration_batches"):
        collect_hessians({"q": Block().query}, [])

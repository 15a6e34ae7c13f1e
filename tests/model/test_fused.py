"""A model whose context has fused kernels: the same losses and gradients, in one graph, with adapters and documents."""

from functools import partial

import pytest
import torch

from pgolf.kernels.fused import choice
from pgolf.kernels.fused.kernels import UNFUSED, Fused
from pgolf.kernels.packing import Packing
from pgolf.model.context import PLAIN, Context
from pgolf.model.head import AsymmetricSoftCap
from pgolf.model.mlp import SwiGLU
from pgolf.model.smear import SmearGate
from pgolf.train.loss.forward import loss_of
from tests.support import tiny_model

pytest.importorskip("triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted, where there is no GPU")

TOKENS = torch.randint(1, 64, (1, 25), generator=torch.Generator().manual_seed(0))
CUTS = Packing.from_cu_seqlens(torch.tensor([0, 9, 24], dtype=torch.int32))


def model_with(**parts):
    return tiny_model(num_layers=3, scramble=0.1, smear=partial(SmearGate, width=12, bos_id=1), **parts)


def every() -> Fused:
    return choice.select("all", torch.device("cpu"))[0]


class Recording:
    """Kernels that say that they were called."""

    def __init__(self):
        self.called = []
        kernels = {name: self.recorded(name, function) for name, function in vars(every()).items()}
        self.fused = Fused(**kernels)

    def recorded(self, name, function):
        def call(*arguments):
            self.called.append(name)
            return function(*arguments)

        return call


def losses_and_gradients(model, context, function=loss_of):
    model.zero_grad()
    value, _ = function(model, TOKENS[:, :-1], TOKENS[:, 1:], context)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check(model, context, function=loss_of):
    got, gradients = losses_and_gradients(model, context, function)
    expected, exact = losses_and_gradients(model, Context(packing=context.packing, adapters=context.adapters))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-4, atol=1e-6, msg=lambda said, name=name: name + said)


@pytest.mark.parametrize("packing", [None, CUTS])
def test_losses_and_gradients_of_the_whole_model_are_the_same(packing):
    kernels = Recording()
    check(model_with(), Context(packing=packing, fused=kernels.fused))
    # queries and keys of every pass; Newton-Schulz is no part of a forward
    counts = {name: kernels.called.count(name) for name in vars(kernels.fused)}
    assert counts["smear_norm"] == counts["cross_entropy"] == 1 and counts["symmetric"] == 0
    assert counts["norm_rotary"] == 2 * counts["mlp"] > 0


def test_it_is_one_graph_forward_and_backward():
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    check(model_with(), Context(packing=CUTS, fused=every()), compiled)


def test_adapters_are_added_to_what_the_kernels_make():
    class Doubling:
        def delta(self, slot, site, x):
            generator = torch.Generator().manual_seed(len(site))
            width = {"k": 16, "v": 16, "head": 64}.get(site, 32)
            return 0.1 * x @ torch.randn(32, width, generator=generator)

    check(model_with(), Context(adapters=Doubling(), fused=every()))


def test_parts_that_no_kernel_fits_keep_their_plain_operations():
    kernels = Recording()
    model = model_with(mlp=partial(SwiGLU, multiple=2.0), softcap=partial(AsymmetricSoftCap, cap=30.0))
    check(model, Context(fused=kernels.fused))
    assert set(kernels.called) == {"norm_rotary", "smear_norm"}


def test_scores_and_adaptation_have_none():
    """A context that was not made for training has no kernels: what is scored is computed as it is written."""
    assert PLAIN.fused is UNFUSED and not UNFUSED.names

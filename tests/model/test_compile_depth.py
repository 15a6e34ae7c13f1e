"""What changes the depth of a model, in compiled graphs: one graph a plan, with the gradients of eager execution."""

from functools import partial

import pytest
import torch

from pgolf.kernels.attend import sdpa
from pgolf.kernels.packing import Packing
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.context import Context
from pgolf.model.differential import Differential
from pgolf.model.equilibrium import RevDEQ
from pgolf.model.exclude import values_of_all_passes
from pgolf.model.legendre import Legendre
from pgolf.model.plan import Depth, InPlace
from pgolf.model.recurrence import CrossLayer
from pgolf.model.rope import Rotary
from tests.support import tiny_model

TOKENS = torch.randint(1, 64, (1, 25), generator=torch.Generator().manual_seed(0))
PACKED = Context(sdpa, Packing.from_cu_seqlens(torch.tensor([0, 10, 24], dtype=torch.int32)))


def everything():
    """Repetition in place, carries across layers, two maps, XSA over all passes, and matrices as series."""
    repeat = InPlace(loops=2, first_layer=2, last_layer=2, from_start=False)
    attention = partial(
        CausalSelfAttention,
        num_heads=4,
        num_kv_heads=2,
        rope=Rotary(dims=4, base=1e4),
        exclude=partial(values_of_all_passes, last=None),
        gate=None,
    )
    return tiny_model(
        scramble=0.1,
        depth=Depth(num_layers=4, loop_start=1, loop_end=2, num_loops=1, skips=True, repeat=repeat),
        attention=attention,
        differential=Differential(),
        recurrence=CrossLayer(),
        legendre=Legendre(groups=[[0, 2]], attention_terms=2, mlp_terms=1),
    )


def fixed_point():
    """The middle of three blocks is solved."""
    depth = Depth(num_layers=3, loop_start=0, loop_end=0, num_loops=0, skips=True)
    equilibrium = RevDEQ(layer=1, iterations=2, beta=0.35, backward=1)
    return tiny_model(scramble=0.1, num_layers=3, num_loops=0, depth=depth, equilibrium=equilibrium)


@pytest.mark.parametrize(
    ("build", "plan"),
    [(everything, "looped"), (fixed_point, "plain")],
)
def test_compiled_gradients_are_those_of_eager_execution(build, plan):
    model = build()

    def loss():
        logits = model.logits(model(TOKENS[:, :-1], PACKED), PACKED)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    leaves = dict(model.named_parameters())
    model.set_plan(plan)
    values = [one() for one in (compiled, loss)]
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(value, list(leaves.values()), allow_unused=True) for value in values]
    for name, got, expected in zip(leaves, *gradients, strict=True):
        assert (got is None) == (expected is None), name
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=3e-5)

"""RevDEQ: its formula, steps that are undone in place of remembered, and gradients for everything that a step reads."""

import gc
import weakref
from functools import partial

import pytest
import torch

from pgolf.kernels.packing import Packing
from pgolf.model.context import PLAIN, Context
from pgolf.model.equilibrium import RevDEQ
from pgolf.model.lanes import ExchangingLanes
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Depth
from pgolf.model.reversible import Tape, relax, relax_checkpointed
from pgolf.ttt.lora import BatchedLora, LoraSettings
from tests.support import tiny_model

TOKENS = torch.randint(4, 64, (2, 12), generator=torch.Generator().manual_seed(1))
SETTINGS = LoraSettings(
    rank=2, alpha=2.0, targets=["q", "o", "mlp"], lr=0.1, beta1=0.0, beta2=0.9, epsilon=1e-8, weight_decay=0.0
)


def model_of(layer=0, iterations=3, num_layers=1, scramble=0.2, lanes=None, **settings):
    depth = Depth(num_layers=num_layers, loop_start=0, loop_end=0, num_loops=0, skips=True)
    equilibrium = RevDEQ(layer=layer, iterations=iterations, beta=0.35, **settings)
    return tiny_model(
        scramble=scramble, num_layers=num_layers, num_loops=0, depth=depth, equilibrium=equilibrium, lanes=lanes
    )


def steps_of(iterations, width=6, dtype=torch.float64):
    """A map with a weight, and its input."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, generator=generator, dtype=dtype).mul_(0.3).requires_grad_()
    x = torch.randn(2, 5, width, generator=generator, dtype=dtype, requires_grad=True)
    return weight, x, lambda state, walk: x + torch.tanh(torch.nn.functional.linear(state, weight))


def gradients(solve, weight, x):
    y, z = solve()
    return z, torch.autograd.grad((y * z.sin()).sum(), (weight, x))


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_undone_and_checkpointed_steps_have_the_gradients_of_plain_autograd(iterations):
    weight, x, f = steps_of(iterations)
    z, expected = gradients(lambda: relax(f, (x, x), iterations, 0.35), weight, x)
    seen = []
    tape = Tape(f, 0.35, lambda y, z: seen.append(((y - x).abs().max().item(), (z - x).abs().max().item())))
    for solve in (
        lambda: relax(f, (x, x), iterations, 0.35, tape=tape),
        lambda: relax_checkpointed(f, (x, x), iterations, 0.35, None),
    ):
        got, found = gradients(solve, weight, x)
        assert torch.equal(got, z)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert len(seen) == 1 and max(seen[0]) < 1e-12


def test_the_steps_are_those_that_were_published():
    _, x, f = steps_of(2)
    y = z = x
    for _ in range(2):
        y = 0.65 * y + 0.35 * f(z, None)
        z = 0.65 * z + 0.35 * f(y, None)
    for one, other in zip(relax(f, (x, x), 2, 0.35), (y, z), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_backward_pass_begins_at_the_end_again():
    weight, x, f = steps_of(3)
    _, expected = gradients(lambda: relax(f, (x, x), 3, 0.35), weight, x)
    y, z = relax(f, (x, x), 3, 0.35, tape=Tape(f, 0.35, lambda y, z: None))
    loss = (y * z.sin()).sum()
    for keep in (True, False):
        for one, other in zip(torch.autograd.grad(loss, (weight, x), retain_graph=keep), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_a_map_that_changes_its_mind_is_an_error():
    _, x, f = steps_of(2)
    calls = []

    def fickle(state, walk):
        calls.append(1)
        return f(state, walk) if len(calls) <= 4 else f(state, walk).exp()

    _, z = relax(fickle, (x, x), 2, 0.35, tape=Tape(fickle, 0.35, lambda y, z: None))
    with pytest.raises(RuntimeError, match="does not do the same every time"):
        z.sum().backward()


def peak_of_saved(iterations):
    """Tensors that autograd keeps between forward and backward, counted where they are packed and unpacked."""
    model = model_of(iterations=iterations)
    alive = weakref.WeakSet()
    packed = []

    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    def pack(tensor):
        box = Box(tensor)
        alive.add(box)
        packed.append(1)
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        hidden = model(TOKENS)
    kept = len(alive)
    del hidden
    gc.collect()
    assert not alive  # nothing holds itself
    return kept


def test_what_is_remembered_does_not_grow_with_the_iterations():
    assert peak_of_saved(2) == peak_of_saved(4) == peak_of_saved(16)


def test_a_walk_is_not_held_by_the_graph_it_holds():
    model = model_of(iterations=2)
    context = Context().begun(TOKENS)
    hidden = model(TOKENS, context)
    watched = weakref.ref(context.walk)
    del context, hidden
    assert watched() is None


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_pass_is_the_solved_block(num_layers):
    """u = m0 z + m1 x0 + x, f = x + norm(attention) + norm(mlp), K = 2, with U-Net skips around."""
    layer = num_layers // 2
    model = model_of(layer, 2, num_layers)
    x = x0 = rms_norm(model.tok_emb(TOKENS))
    kept = []
    for step in model.plan.passes:
        block = model.blocks[step.block]
        if step.pop is not None:
            skip = model.skip_weights[step.pop] * kept.pop()
            x = skip + torch.sigmoid(model.skip_gates[step.pop]) * (x - skip)
        if step.block == layer:

            def f(z, x=x, block=block, step=step):
                u = block.resid_mix[0] * z + block.resid_mix[1] * x0 + x
                return x + rms_norm(block.attend(u, step, PLAIN)) + rms_norm(block.feed(u, step, PLAIN))

            y = z = x
            for _ in range(2):
                y = 0.65 * y + 0.35 * f(z)
                z = 0.65 * z + 0.35 * f(y)
            x = z
        else:
            x = block(x, x0, step, PLAIN)
        if step.push:
            kept.append(x)
    torch.testing.assert_close(model(TOKENS), rms_norm(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backward", [None, 1])
def test_parameters_and_adapters_have_the_gradients_of_plain_autograd(backward, monkeypatch):
    """Plain: the tape is taken away, so autograd remembers everything. In double precision."""
    model = model_of(1, 3, 3, backward=backward).double()
    monkeypatch.setattr(model.precision, "stream", lambda embedded: embedded)  # else fp32
    adapters = BatchedLora(model, 2, SETTINGS, 0, "test").double()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    leaves = dict(model.named_parameters()) | {f"lora.{name}": each for name, each in adapters.named_parameters()}

    def found():
        loss = model(TOKENS, Context(adapters=adapters)).sin().sum()
        return torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)

    undone = found()
    assert float(model.equilibrium.reconstruction) < 1e-12
    monkeypatch.setattr("pgolf.model.equilibrium.Tape", lambda *_: None)
    reached = 0
    for name, one, other in zip(leaves, undone, found(), strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
            reached += bool(one.any())
    assert reached > 30
    assert leaves["lora.down.1:q"].requires_grad and undone[list(leaves).index("lora.up.1:q")].any()


def test_truncation_changes_gradients_and_not_the_value():
    full, cut = model_of(iterations=4), model_of(iterations=4, backward=1)
    assert torch.equal(full(TOKENS), cut(TOKENS))
    for model in (full, cut):
        model(TOKENS).sin().sum().backward()
    assert not torch.allclose(full.blocks[0].mlp.fc.weight.grad, cut.blocks[0].mlp.fc.weight.grad)
    assert cut.tok_emb.weight.grad.any()  # the input is read by every step, so it still learns


def test_evaluation_may_take_another_number_of_iterations():
    model = model_of(iterations=2, eval_iterations=7)
    seven = model_of(iterations=7)
    assert torch.equal(model(TOKENS), model_of(iterations=2)(TOKENS))
    model.eval()
    assert torch.equal(model(TOKENS), seven(TOKENS))
    with torch.no_grad():
        assert torch.equal(model(TOKENS), seven(TOKENS))


def test_more_iterations_come_to_rest():
    """The K-sweep of the published gate: the map is bounded, so its relaxation does not run away."""
    hidden = {}
    for count in (16, 64, 128):
        model = model_of(iterations=2, eval_iterations=count, scramble=0.02).eval()
        with torch.no_grad():
            hidden[count] = model(TOKENS)
    assert hidden[128].isfinite().all()
    assert (hidden[128] - hidden[64]).norm() < 0.1 * (hidden[64] - hidden[16]).norm() + 1e-3


def test_it_begins_with_output_projections_that_are_not_zero_and_moves_no_other_value():
    bare = tiny_model(num_layers=1, num_loops=0)
    model = model_of(scramble=0.0)
    before, after = bare.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"blocks.0.attn.proj.weight", "blocks.0.mlp.proj.weight"}


def test_documents_stay_apart_and_the_future_unread():
    model = model_of(1, 3, 3).eval()
    tokens = TOKENS[:1]
    changed = tokens.clone()
    changed[:, 7:] = 5
    assert torch.equal(model(tokens)[:, :7], model(changed)[:, :7])
    packed = model(tokens, Context(packing=Packing.from_cu_seqlens(torch.tensor([0, 5, 12]))))
    alone = torch.cat([model(tokens[:, :5]), model(tokens[:, 5:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 3}, r"none of the layers 0\.\.2"),
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"backward": 0}, "backward=0 must be at least 1"),
        ({"layer": 2, "lanes": partial(ExchangingLanes, start_layer=1)}, "on two lanes"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        model_of(**{"layer": 0, "iterations": 2, "num_layers": 3, **settings})
    with pytest.raises(ValueError, match="cannot be undone"):
        RevDEQ(layer=0, iterations=2, beta=1.0)


def test_every_step_draws_its_iterations_and_a_resumed_run_draws_the_same():
    model = model_of(iterations=[2, 3, 5])
    part = model.equilibrium
    assert part in model.controlled and part.steered() == []
    assert (part.iterations, part.eval_iterations, model.evaluations(0)) == (5, 5, 10)

    def drawn(steps):
        found = []
        for step in steps:
            part.begin_step(step)
            found.append(part.iterations)
        return found

    first = drawn(range(60))
    assert set(first) == {2, 3, 5} and all(10 <= first.count(one) <= 30 for one in (2, 3, 5))
    assert drawn(range(30, 60)) == first[30:]
    model.train()
    part.iterations = 2
    few = model(TOKENS, PLAIN)
    assert torch.equal(few, model_of(iterations=2).train()(TOKENS, PLAIN))
    assert torch.equal(model.eval()(TOKENS, PLAIN), model_of(iterations=5).eval()(TOKENS, PLAIN))
    assert not torch.allclose(few, model(TOKENS, PLAIN))


@pytest.mark.parametrize("iterations", [[], [4, 0]])
def test_iterations_to_draw_from_must_be_some(iterations):
    with pytest.raises(ValueError, match="equilibrium.iterations="):
        RevDEQ(layer=0, iterations=iterations, beta=0.5)

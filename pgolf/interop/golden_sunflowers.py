"""The published checks of PR 2059 on the parts that are here: its smoke test and its proof of equivalence.

Both pinned values by drawing everything from one generator, so draws are made here in the published order and given to
the parts; the values come out of these. Neither check is as strong as it was said to be. In the equivalence all output
projections are zero, so blocks are the identity and nothing of attention or the MLPs reaches the loss. The smoke test
of the loops multiplies by 1.01 four times; here that multiplication is at least walked by the plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pgolf.data.loaders import Batch
from pgolf.interop.initial_state import NaiveSizes, naive_state, published_digest, random_batch
from pgolf.model.context import LAST, Context, Walk
from pgolf.model.gpt import GPT
from pgolf.model.phi import ALPHA, INVERSE, LOOPS, PHI, SEEDS
from pgolf.model.phinta import PhiNTA
from pgolf.model.plan import Depth, InPlace
from pgolf.optim.tripwire import Tripwire
from pgolf.train.loss.linear_span import LinearSpan
from pgolf.ttt.e2e import InnerSteps

SEED, BATCH_SEED = SEEDS[0], 42
SIZES = NaiveSizes(vocab_size=1024, num_layers=9, dim=128, num_heads=8, num_kv_heads=4, mlp_width=256)
DIM, RANK = 64, 13
DIGEST = "511dbc0164e03b1b3aff47ff22406e2fd8ffb095cea89441630e4349418c2e35"
TABLES = ["model.dim=128", "model.attention.rope.dims=16", "model/precision=fp32", "scale=full"]
"""Overrides that give a preset of the naive family the sizes of SIZES, in fp32 throughout."""


@dataclass(frozen=True)
class Finding:
    """A value that was found here beside the published one, both as they are printed."""

    what: str
    found: str
    published: str

    @property
    def agrees(self) -> bool:
        """Whether they are the same."""
        return self.found == self.published


def smoke() -> Iterator[Finding]:
    """The module smoke test: one generator throughout, nothing seeded again between the checks."""
    yield Finding("phi^2 + phi^-2", f"{PHI**2 + PHI**-2:.12f}", "3.000000000000")
    yield Finding("alpha_phi = phi^-3 / 2", f"{ALPHA:.6f}", "0.118034")
    yield Finding("loops = round(phi^3)", f"{LOOPS}", "4")
    generator = torch.Generator().manual_seed(SEED)
    yield from _phinta(generator)
    yield from _linear_span(torch.randn(2, 32, DIM, generator=generator), generator)
    yield _loops(torch.randn(1, 8, DIM, generator=generator))
    yield _inner_steps()


def equivalence(model: GPT) -> Iterator[Finding]:
    """The published initial state in `model`, of the sizes SIZES: what it hashes to, and the loss that it gives.

    RuntimeError when the model has other parameters: then it is not the published one.
    """
    model.load_state_dict(naive_state(SIZES, SEED))
    state = model.state_dict()
    yield Finding("tensors of the initial state", f"{len(state)}", "92")
    yield Finding("values of the initial state", f"{sum(value.numel() for value in state.values()):,}", "1,168,456")
    yield Finding("SHA-256 of the initial state", published_digest(state), DIGEST)
    inputs, targets = random_batch(SIZES.vocab_size, 2, 64, BATCH_SEED)
    context = Context().begun(inputs, frozenset({LAST, SIZES.num_layers - 1}))
    with torch.no_grad():
        logits = model.eval().logits(model(inputs, context), context)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    yield Finding("loss of a random batch", f"{loss.item():.12f}", "6.929044246674")
    assert context.walk is not None  # just begun
    kept = context.walk.kept
    same = kept["output", LAST].equal(kept["output", SIZES.num_layers - 1])
    yield Finding("JEPA reads at layer -1 what the last block gives", f"{same}", "True")


def _phinta(generator: torch.Generator) -> Iterator[Finding]:
    """Draws its values, then those of its input."""
    adapter = PhiNTA(DIM, rank=RANK, init_scale=INVERSE, basis_gain=None)
    adapter.draw(generator)
    trained = {name: value for name, value in adapter.named_parameters() if value.requires_grad}
    sizes = sum(value.numel() for value in trained.values()), adapter.basis.numel()
    yield Finding("PhiNTA: trained values", f"{sizes[0]}", "1664")
    yield Finding("PhiNTA: frozen values", f"{sizes[1]}", "4096")
    yield Finding("PhiNTA: their ratio", f"{sizes[0] / sizes[1]:.3f}", "0.406")
    lengths = adapter.basis.norm(dim=1)
    yield Finding("PhiNTA: rows as long as 1 / phi", f"{bool((lengths - INVERSE).abs().max() < 1e-5)}", "True")
    adapter(torch.randn(2, 16, DIM, generator=generator)).sum().backward()
    moving = [name for name, value in trained.items() if value.grad is not None and value.grad.abs().sum() > 0]
    yield Finding("PhiNTA: what has a gradient at first", ", ".join(moving), "up.weight")


def _linear_span(hidden: Tensor, generator: torch.Generator) -> Iterator[Finding]:
    """hidden [rows, T, dim]; the generator draws the span's length, then its beginning."""
    term = LinearSpan(coefficient=1.0, max_span_fraction=0.5, layer=LAST, start=0.0)
    rows, length = hidden.shape[:2]
    tokens = torch.zeros(rows, length, dtype=torch.int64)
    facts, _ = term.prepare(Batch(tokens, tokens, None), lambda: generator)
    _, before, end, _ = facts[0][:, 0].tolist()
    yield Finding("JEPA: the span drawn", f"s={end - before - 1}, a={before + 1}, b={end}", "s=10, a=4, b=14")
    walked: Any = SimpleNamespace(walk=Walk(tokens, kept={("output", LAST): hidden}))  # all that the term reads
    loss = term(walked, None, facts).item() / rows
    yield Finding("JEPA: the loss", f"{loss:.4f}", "1.6922")


def _loops(first: Tensor) -> Finding:
    """A block that adds a hundredth of its input, walked by the plan of the loops."""
    loops = InPlace(loops=LOOPS, first_layer=3, last_layer=5, from_start=True)
    plan = Depth(num_layers=9, loop_start=0, loop_end=0, num_loops=0, skips=True, repeat=loops).plans["plain"]
    x = first
    for step in plan.passes:
        x = x + 0.01 * x if step.block == 3 else x
    return Finding("loops: growth of a block of 1.01", f"{float(x.norm() / first.norm()):.4f}", "1.0406")


def _inner_steps() -> Finding:
    """No inner step: the optimiser is called for nothing, and the cost that it got is given back as it is."""
    wire, cost = Tripwire(), torch.ones(1)

    def step(_: Tensor) -> None:
        wire.zero_grad()
        wire.step()

    given = InnerSteps(steps=0).take(wire, step, lambda: cost + 1, cost)
    calls = wire.zero_grads + wire.steps + (given is not cost)
    return Finding("inner steps that are off: calls of the optimiser", f"{calls}", "0")

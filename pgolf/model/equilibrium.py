"""A block solved for a fixed point instead of applied (RevDEQ of jzmyres; deep equilibria: arXiv 1909.01377)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgolf.distributed import Group
from pgolf.model.block import Block
from pgolf.model.context import Context, Walk
from pgolf.model.control import Controlled
from pgolf.model.norm import rms_norm
from pgolf.model.plan import Pass
from pgolf.model.reversible import Function, States, Tape, relax, relax_checkpointed
from pgolf.model.roles import orthogonal, stream
from pgolf.model.vectors import VectorSet

if TYPE_CHECKING:
    from pgolf.model.gpt import GPT


class Equilibrium(nn.Module, Controlled):
    """What a pass through block `layer` gives is z after K coupled steps from y = z = x, its input:

    y <- (1 - b) y + b f(z); z <- (1 - b) z + b f(y), with
    f(z) = x + norm(attention(norm(u))) + norm(mlp(norm(u))), u = m0 z + m1 x0 + x.

    That is the published map where the block mixes nothing in (m0 = 1, m1 = 0) and x is x0: a model of one block. All
    parts of the block, its adapters too, are those of every evaluation. What it leaves in the walk is that of the last.

    iterations: K in training; several: each step draws one of them, all with the same chance.
    eval_iterations: K in evaluation, where adapters learn too. backward: the
    gradient goes through the last so many iterations, and what they begin from counts as constant; None: all.
    states in fp64, in which steps can be undone; published so in training, in fp32 in evaluation. f computes in the
    dtype of x. Without a compiler steps are undone for the backward pass, so that memory does not grow with K; in a
    compiled graph both states of every iteration are remembered (pgolf.model.reversible).

    reconstruction: how far undoing all steps of the last backward pass missed their start, (|y - x| + |z - x|) /
    max(|x|, 1), in fp64; None before there was one.
    """

    def __init__(
        self, layer: int, iterations: Sequence[int], eval_iterations: int, beta: float, backward: int | None
    ) -> None:
        super().__init__()
        self.layer, self.choices, self.beta, self.backward = layer, tuple(iterations), beta, backward
        self.iterations, self.eval_iterations = max(iterations), eval_iterations
        self.reconstruction: Tensor | None = None

    def steered(self) -> list[nn.Parameter]:
        """None: what it moves is the number of iterations."""
        return []

    def begin_step(self, step: int) -> None:
        """Draw the iterations of a step, from its number alone."""
        if len(self.choices) > 1:
            drawn = torch.randint(len(self.choices), (), generator=stream(0, f"equilibrium/{step}"))
            self.iterations = self.choices[int(drawn)]

    def observe(self, walk: Walk) -> None:
        """Nothing: no forward changes the draw."""

    def end_step(self, group: Group) -> None:
        """Nothing: every rank draws the same."""

    def forward(
        self, block: Block, x: Tensor, x0: Tensor, step: Pass, context: Context, vectors: VectorSet | None
    ) -> Tensor:
        """x, x0 [B, T, dim] -> [B, T, dim]."""
        outer = context.walk
        assert outer is not None  # begun by the model
        # an evaluation that is repeated for the backward pass must find what the first one did, and must not hold the
        # walk: that holds what the last one leaves, hence the graph which holds this function
        bare, tokens, before = replace(context, walk=None), outer.tokens, dict(outer.kept)

        def evaluate(state: Tensor, leave: Walk | None) -> Tensor:
            walk = Walk(tokens, dict(before))
            inner = replace(bare, walk=walk)
            u = block.mix(state.to(x.dtype), x0, vectors) + x
            attended, fed = block.attend(u, step, inner, vectors), block.feed(u, step, inner, vectors)
            if leave is not None:
                leave.kept.update(walk.kept)
                for name, cost in walk.costs.items():
                    leave.charge(name, cost)
            return x + rms_norm(attended) + rms_norm(fed)

        count = self.iterations if self.training else self.eval_iterations
        remembered = count if self.backward is None else min(count, self.backward)
        states = (x.double(), x.double())
        if remembered < count:
            with torch.no_grad():
                states = relax(evaluate, states, count - remembered, self.beta)
        z = self._solve(evaluate, states, remembered, outer).to(x.dtype)
        return block.ended(block.mix(x, x0, vectors), z, context)

    def _solve(self, f: Function, states: States, count: int, walk: Walk) -> Tensor:
        if torch.compiler.is_compiling():
            return relax_checkpointed(f, states, count, self.beta, walk)[1]
        if not torch.is_grad_enabled():
            return relax(f, states, count, self.beta, walk)[1]
        begun = [state.detach() for state in states]

        def measure(y: Tensor, z: Tensor) -> None:
            missed = torch.linalg.vector_norm(y - begun[0]) + torch.linalg.vector_norm(z - begun[1])
            self.reconstruction = missed / torch.linalg.vector_norm(begun[1]).clamp_min(1.0)

        return relax(f, states, count, self.beta, walk, Tape(f, self.beta, measure))[1]


class RevDEQ:
    """Solves one block of a model, see `Equilibrium`. layer: which. Its output projections start orthogonal instead of
    at zero: they are behind a norm, and the norm of zero has no direction. iterations: of several each step draws one
    (K-jitter, published with 8, 12 and 20, then 16 and 24, in the end 16 alone); each is a graph of its own for a
    compiler. eval_iterations=None: as in training, of several the largest.

    Raises ValueError for a relaxation that is none, or a layer that is not there or on lanes.
    """

    def __init__(
        self,
        *,
        layer: int,
        iterations: int | list[int],
        beta: float,
        eval_iterations: int | None = None,
        backward: int | None = None,
    ) -> None:
        choices = iterations if isinstance(iterations, list) else [iterations]
        if not choices:
            raise ValueError("equilibrium.iterations=[]: give a number, or a list of numbers to draw from")
        counts = [("eval_iterations", eval_iterations), ("backward", backward)]
        for name, count in [*(("iterations", one) for one in choices), *counts]:
            if count is not None and count < 1:
                raise ValueError(f"equilibrium.{name}={count} must be at least 1")
        if not 0.0 < beta < 1.0:
            raise ValueError(f"equilibrium.beta={beta} must lie between 0 and 1: a step of 1 cannot be undone")
        self.layer, self.iterations, self.beta = layer, choices, beta
        self.eval_iterations = max(choices) if eval_iterations is None else eval_iterations
        self.backward = backward

    def fit(self, model: "GPT") -> None:
        """ValueError when the model has no such layer, or walks it on lanes."""
        if not 0 <= self.layer < len(model.blocks):
            raise ValueError(f"equilibrium.layer={self.layer} is none of the layers 0..{len(model.blocks) - 1}")
        passes = [step for plan in model.plans.values() for step in plan.passes if step.block == self.layer]
        if any(step.form == "lanes" for step in passes):
            raise ValueError(f"equilibrium.layer={self.layer} is walked on two lanes, which have no fixed point here")
        block = model.blocks[self.layer]
        outputs = [part.proj for part in (block.attn, block.mlp) if part is not None]
        outputs += [block.state_space.out_proj] if block.state_space is not None else []
        for proj in outputs:
            proj.inits["weight"] = orthogonal()
        model.equilibrium = Equilibrium(self.layer, self.iterations, self.eval_iterations, self.beta, self.backward)

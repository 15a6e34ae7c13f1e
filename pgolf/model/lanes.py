"""How late layers combine attention and MLP when they do not follow each other on one stream.

A part here decides the form of every pass (pgolf.model.plan) and, where there are two lanes, how a pass moves them.
Both lanes start as copies of the stream at the first pass on lanes; what a later pass without lanes adds to the stream
is lost, as published (a looped segment that reaches into the lanes does that).
"""

import math
from typing import Literal

from torch import Tensor, nn

from pgolf.model.block import Block
from pgolf.model.context import Context
from pgolf.model.plan import Form, Pass
from pgolf.model.roles import Part, constant
from pgolf.model.vectors import VectorSet


class Wiring(Part):
    """What all wirings share: two lanes from the first pass of the second half that visits `start_layer` or a later
    block.

    skip_lanes: the lanes that U-Net skips are mixed into. writes: the lanes that the output of attention, which reads
    lane 0, and that of the MLP, which reads lane 1, are added to. Raises ValueError when there is no such block.
    """

    skip_lanes: tuple[int, ...] = ()
    writes: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 1), (0, 1))

    def __init__(self, num_layers: int, start_layer: int) -> None:
        super().__init__()
        if not 0 <= start_layer < num_layers:
            raise ValueError(f"lanes.start_layer={start_layer} is none of the layers 0..{num_layers - 1}")
        self.start_layer = start_layer

    def form(self, block: int, decoder: bool) -> Form:
        """The form of a pass through `block`, in the second half of the plan or not."""
        return "lanes" if decoder and block >= self.start_layer else "sequential"

    def forward(
        self,
        lanes: list[Tensor],
        x0: Tensor,
        block: Block,
        step: Pass,
        context: Context,
        vectors: VectorSet | None = None,
    ) -> list[Tensor]:
        """One pass on lanes: two lanes [B, T, dim] -> two lanes."""
        raise NotImplementedError(f"{type(self).__name__} has no lanes")

    def merge(self, lanes: list[Tensor]) -> Tensor:
        """The stream [B, T, dim] that the final norm reads: the mean of the lanes."""
        return (lanes[0] + lanes[1]) * 0.5


class ParallelResidual(Wiring):
    """GPT-J blocks from `start_layer` on, wherever they are visited: attention and MLP read the same normed input and
    are both added to one stream (PR 1493)."""

    def __init__(self, num_layers: int, *, start_layer: int) -> None:
        super().__init__(num_layers, start_layer)

    def form(self, block: int, decoder: bool) -> Form:
        """Parallel, on one stream."""
        return "parallel" if block >= self.start_layer else "sequential"


class TwoLane(Wiring):
    """Attention reads lane 0, the MLP lane 1, both before either is written; learned factors say how much of each
    output, and of each lane itself, a lane takes (PR 1530).

    parallel_post_lambdas [L, source, lane] start at 1, parallel_resid_lambdas [L, lane] at 1.1; rows of blocks that are
    never on lanes are never read. final_lane: the lane that goes to the head, or their mean.
    """

    parallel_post_lambdas: nn.Parameter
    parallel_resid_lambdas: nn.Parameter
    skip_lanes = (0,)

    def __init__(self, num_layers: int, *, start_layer: int, final_lane: Literal["mean", "attn", "mlp"]) -> None:
        super().__init__(num_layers, start_layer)
        self.final_lane = final_lane
        self.declare("parallel_post_lambdas", (num_layers, 2, 2), "scalar", constant(1.0))
        self.declare("parallel_resid_lambdas", (num_layers, 2), "scalar", constant(1.1))

    def forward(
        self,
        lanes: list[Tensor],
        x0: Tensor,
        block: Block,
        step: Pass,
        context: Context,
        vectors: VectorSet | None = None,
    ) -> list[Tensor]:
        """Two lanes [B, T, dim] -> two lanes. Lane 0 keeps itself, not its mix with x0."""
        attended = block.attend(block.mix(lanes[0], x0, vectors), step, context, vectors)
        fed = block.feed(lanes[1], step, context, vectors)
        take = self.parallel_post_lambdas[step.block].to(x0.dtype)
        keep = self.parallel_resid_lambdas[step.block].to(x0.dtype)
        return [keep[to] * lanes[to] + take[0, to] * attended + take[1, to] * fed for to in (0, 1)]

    def merge(self, lanes: list[Tensor]) -> Tensor:
        """The final lane, or the mean of both."""
        if self.final_lane == "mean":
            return super().merge(lanes)
        return lanes[0] if self.final_lane == "attn" else lanes[1]


class ExchangingLanes(Wiring):
    """Attention reads lane 0 mixed with x0 and is added to both lanes; then the MLP reads lane 1, so updated and mixed
    with x0, and is added to both (2026-03-31).

    parallel_post_lambdas [L, source, lane] start at 1, parallel_resid_lambdas [L, source] at sqrt(1.1). Skips go into
    both lanes.
    """

    parallel_post_lambdas: nn.Parameter
    parallel_resid_lambdas: nn.Parameter
    skip_lanes = (0, 1)

    def __init__(self, num_layers: int, *, start_layer: int) -> None:
        super().__init__(num_layers, start_layer)
        self.declare("parallel_post_lambdas", (num_layers, 2, 2), "scalar", constant(1.0))
        self.declare("parallel_resid_lambdas", (num_layers, 2), "scalar", constant(math.sqrt(1.1)))

    def forward(
        self,
        lanes: list[Tensor],
        x0: Tensor,
        block: Block,
        step: Pass,
        context: Context,
        vectors: VectorSet | None = None,
    ) -> list[Tensor]:
        """Two lanes [B, T, dim] -> two lanes."""
        take = self.parallel_post_lambdas[step.block].to(x0.dtype)
        keep = self.parallel_resid_lambdas[step.block].to(x0.dtype)
        attended = block.attend(block.mix(lanes[0], x0, vectors), step, context, vectors)
        lanes = [keep[0] * lanes[to] + take[0, to] * attended for to in (0, 1)]
        fed = block.feed(block.mix(lanes[1], x0, vectors), step, context, vectors)
        return [keep[1] * lanes[to] + take[1, to] * fed for to in (0, 1)]


class SeparateLanes(Wiring):
    """Lane 0 is mixed with x0 and takes attention, lane 1 takes the MLP, and they meet only at the end:
    m lane0 + (1 - m) lane1, m learned from 1/2 (2026-04-04).

    Skips that are taken back after the lanes begin have no effect, as published.
    """

    lane_merge: nn.Parameter
    writes = ((0,), (1,))

    def __init__(self, num_layers: int, *, start_layer: int) -> None:
        super().__init__(num_layers, start_layer)
        self.declare("lane_merge", (1,), "scalar", constant(0.5))

    def forward(
        self,
        lanes: list[Tensor],
        x0: Tensor,
        block: Block,
        step: Pass,
        context: Context,
        vectors: VectorSet | None = None,
    ) -> list[Tensor]:
        """Two lanes [B, T, dim] -> two lanes."""
        mixed = block.mix(lanes[0], x0, vectors)
        return [
            mixed + block.attend(mixed, step, context, vectors),
            lanes[1] + block.feed(lanes[1], step, context, vectors),
        ]

    def merge(self, lanes: list[Tensor]) -> Tensor:
        """m lane0 + (1 - m) lane1."""
        share = self.lane_merge.to(lanes[0].dtype)
        return share * lanes[0] + (1.0 - share) * lanes[1]

"""The order in which blocks are walked, as data.

Depth recurrence, U-Net skips and parallel lanes are not branches in `forward`: LayerPlans are computed from the
configuration and `forward` walks one of them. Turning recurrence on during training swaps one plan for another.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Form = Literal["sequential", "parallel", "lanes"]
"""How a visit combines attention and MLP: one after the other, side by side on one stream, or on two lanes."""


@dataclass(frozen=True)
class Pass:
    """One visit of one block.

    block: index of the block whose weights are used.
    slot: virtual layer, the index that adapters are keyed by (a block visited three times by depth recurrence has three
    slots; one that is repeated in place has one for all of its repetitions).
    depth: the index d of the factor 1 / sqrt(d + 1) after both norms, where the model has it.
    push: whether the output is kept for a later skip.
    pop: row of `skip_weights` through which the newest kept output is mixed into the input, or None.
    form: see `Form`.
    visit: how often the plan has visited the block before.
    early: whether the slot is in the first half of the plan.
    """

    block: int
    slot: int
    depth: int
    push: bool = False
    pop: int | None = None
    form: Form = "sequential"
    visit: int = 0
    early: bool = False


@dataclass(frozen=True)
class LayerPlan:
    """A list of passes, walked once per forward."""

    passes: tuple[Pass, ...]

    @property
    def num_skips(self) -> int:
        """How many rows of `skip_weights` the plan reads."""
        return max((step.pop + 1 for step in self.passes if step.pop is not None), default=0)

    @property
    def num_slots(self) -> int:
        """How many virtual layers the plan has."""
        return max(step.slot for step in self.passes) + 1

    def formed(self, form: Callable[[int, bool], Form]) -> "LayerPlan":
        """The same plan with the form of each pass decided by form(block, whether it is in the second half)."""
        return LayerPlan(tuple(replace(step, form=form(step.block, not step.early)) for step in self.passes))

    def visits(self, num_layers: int) -> list[int]:
        """How often each block is visited."""
        return [sum(step.block == block for step in self.passes) for block in range(num_layers)]

    def rows(self) -> list[dict[str, object]]:
        """The plan as a table: one row per pass, in order."""
        table: list[dict[str, object]] = []
        for step in self.passes:
            table.append(
                {
                    "slot": step.slot,
                    "block": step.block,
                    "visit": step.visit + 1,
                    "form": step.form,
                    "push": step.push,
                    "pop": step.pop,
                }
            )
        return table


class InPlace:
    """Universal-transformer loops (PR 2059): each block of first_layer..last_layer (inclusive) is applied `loops` times
    in place, a a a b b b, wherever the plan comes to it. A skip is added once before the first of these, and kept once
    after the last. All of them have one slot, so one adapter.

    from_start: in every plan; false: only in the one that training ends with (train.loop_at). Raises ValueError when
    nothing would be repeated.
    """

    def __init__(self, *, loops: int, first_layer: int, last_layer: int, from_start: bool) -> None:
        if loops < 2:
            raise ValueError(f"depth.repeat.loops={loops} repeats nothing: give 2 or more, or depth/repeat=none")
        if not 0 <= first_layer <= last_layer:
            raise ValueError(
                f"depth.repeat.first_layer={first_layer} must lie between 0 and last_layer={last_layer}, which is "
                "repeated too"
            )
        self.loops, self.first_layer, self.last_layer = loops, first_layer, last_layer
        self.from_start = from_start

    def times(self, block: int) -> int:
        """How often a pass through `block` is made."""
        return self.loops if self.first_layer <= block <= self.last_layer else 1


class Depth:
    """How many blocks there are and in which order they are walked (depth recurrence of PR 1394 and after, U-Net
    skips of the 2026-03 records).

    num_layers: number of blocks. loop_start..loop_end (inclusive): the segment that is repeated `num_loops` more times
    once recurrence is on; num_loops=0 is no recurrence. skips: the first half of the passes keeps its outputs, the
    second half takes them back in reverse order.
    ramp: whether the plans between "plain" and "looped" exist too, with one more repetition each (loop1, loop2, ...),
    for a trainer that turns recurrence on in steps.
    skip_rows: rows of the skip weights. "all": one for every skip of the deepest plan. "plain": as many as the plan
    without recurrence has, later skips are not taken (2026-04-04). "plain_reused": as many, and later skips read the
    last row (2026-04-03).
    norm_depth: whether the factor after the norms follows the block ("physical") or the virtual layer ("virtual",
    2026-03-31).
    repeat: optional repetition of blocks in place, within the order that all this gives.

    `plans` holds the plans by name, from the first to the last that training walks. Raises ValueError when the segment
    does not lie inside the network, or that of `repeat` does not.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        loop_start: int,
        loop_end: int,
        num_loops: int,
        skips: bool,
        ramp: bool = False,
        skip_rows: Literal["all", "plain", "plain_reused"] = "all",
        norm_depth: Literal["physical", "virtual"] = "physical",
        repeat: InPlace | None = None,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: a model needs at least one layer")
        if num_loops < 0:
            raise ValueError(f"num_loops={num_loops} must be 0 (no recurrence) or more")
        if num_loops and not 0 <= loop_start <= loop_end < num_layers:
            raise ValueError(
                f"loop_start={loop_start}, loop_end={loop_end} is not a segment of layers 0..{num_layers - 1}"
            )
        if repeat is not None and repeat.last_layer >= num_layers:
            raise ValueError(f"depth.repeat.last_layer={repeat.last_layer} is none of the layers 0..{num_layers - 1}")
        self.num_layers, self.skips, self.skip_rows, self.norm_depth = num_layers, skips, skip_rows, norm_depth
        blocks = list(range(num_layers))
        first = repeat if repeat is not None and repeat.from_start else None
        self.plans: dict[str, LayerPlan] = {}
        for loops in range(num_loops + 1) if ramp else sorted({0, num_loops}):
            name = "plain" if loops == 0 else "looped" if loops == num_loops else f"loop{loops}"
            repeated = blocks[loop_start : loop_end + 1] * loops
            order = blocks[: loop_end + 1] + repeated + blocks[loop_end + 1 :]
            self.plans[name] = self._plan(order, repeat if name == "looped" else first)
        self.plans.setdefault("looped", self._plan(blocks, repeat))

    def _plan(self, blocks: list[int], repeat: InPlace | None) -> LayerPlan:
        encoder = len(blocks) // 2
        rows = encoder if self.skip_rows == "all" else self.num_layers // 2
        passes: list[Pass] = []
        visits = [0] * self.num_layers
        for slot, block in enumerate(blocks):
            row: int | None = slot - encoder if self.skips and 0 <= slot - encoder < encoder else None
            if row is not None and row >= rows:
                row = rows - 1 if rows and self.skip_rows == "plain_reused" else None
            depth = block if self.norm_depth == "physical" else slot
            times, early = repeat.times(block) if repeat is not None else 1, slot < encoder
            for turn in range(times):
                push, pop = self.skips and early and turn == times - 1, row if turn == 0 else None
                passes.append(Pass(block, slot, depth, push=push, pop=pop, visit=visits[block], early=early))
                visits[block] += 1
        return LayerPlan(tuple(passes))

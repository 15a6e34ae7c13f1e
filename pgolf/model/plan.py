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
    slot: virtual layer, the index that adapters are keyed by (a block visited three times has three slots).
    depth: the index d of the factor 1 / sqrt(d + 1) after both norms, where the model has it.
    push: whether the output is kept for a later skip.
    pop: row of `skip_weights` through which the newest kept output is mixed into the input, or None.
    form: see `Form`.
    visit: how often the plan has visited the block before.
    """

    block: int
    slot: int
    depth: int
    push: bool = False
    pop: int | None = None
    form: Form = "sequential"
    visit: int = 0


@dataclass(frozen=True)
class LayerPlan:
    """A list of passes, walked once per forward."""

    passes: tuple[Pass, ...]

    @property
    def num_skips(self) -> int:
        """How many rows of `skip_weights` the plan reads."""
        return max((step.pop + 1 for step in self.passes if step.pop is not None), default=0)

    def formed(self, form: Callable[[int, bool], Form]) -> "LayerPlan":
        """The same plan with the form of each pass decided by form(block, whether it is in the second half)."""
        half = len(self.passes) // 2
        return LayerPlan(tuple(replace(step, form=form(step.block, step.slot >= half)) for step in self.passes))

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

    `plans` holds the plans by name, from the first to the last that training walks. Raises ValueError when the segment
    does not lie inside the network.
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
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: a model needs at least one layer")
        if num_loops < 0:
            raise ValueError(f"num_loops={num_loops} must be 0 (no recurrence) or more")
        if num_loops and not 0 <= loop_start <= loop_end < num_layers:
            raise ValueError(
                f"loop_start={loop_start}, loop_end={loop_end} is not a segment of layers 0..{num_layers - 1}"
            )
        self.num_layers, self.skips, self.skip_rows, self.norm_depth = num_layers, skips, skip_rows, norm_depth
        blocks = list(range(num_layers))
        self.plans: dict[str, LayerPlan] = {}
        for loops in range(num_loops + 1) if ramp else sorted({0, num_loops}):
            name = "plain" if loops == 0 else "looped" if loops == num_loops else f"loop{loops}"
            repeated = blocks[loop_start : loop_end + 1] * loops
            self.plans[name] = self._plan(blocks[: loop_end + 1] + repeated + blocks[loop_end + 1 :])
        self.plans.setdefault("looped", self.plans["plain"])

    def _plan(self, blocks: list[int]) -> LayerPlan:
        encoder = len(blocks) // 2
        rows = encoder if self.skip_rows == "all" else self.num_layers // 2
        passes = []
        for slot, block in enumerate(blocks):
            row: int | None = slot - encoder if self.skips and 0 <= slot - encoder < encoder else None
            if row is not None and row >= rows:
                row = rows - 1 if rows and self.skip_rows == "plain_reused" else None
            depth = block if self.norm_depth == "physical" else slot
            push, visit = self.skips and slot < encoder, blocks[:slot].count(block)
            passes.append(Pass(block, slot, depth, push=push, pop=row, visit=visit))
        return LayerPlan(tuple(passes))

"""The order in which blocks are walked, as data.

Depth recurrence and U-Net skips are not branches in `forward`: a LayerPlan is computed from the configuration
and `forward` walks it. Turning recurrence on during training swaps one plan for another.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Pass:
    """One visit of one block.

    block: index of the block whose weights are used.
    slot: virtual layer, the index that adapters are keyed by (a block visited three times has three slots).
    push: whether the output is kept for a later skip.
    pop: row of `skip_weights` through which the newest kept output is mixed into the input, or None.
    """

    block: int
    slot: int
    push: bool = False
    pop: int | None = None


@dataclass(frozen=True)
class LayerPlan:
    """A list of passes, walked once per forward."""

    passes: tuple[Pass, ...]

    @property
    def num_skips(self) -> int:
        """How many rows of `skip_weights` the plan reads."""
        return sum(step.pop is not None for step in self.passes)

    def rows(self) -> list[dict[str, object]]:
        """The plan as a table: one row per pass, in order."""
        seen: dict[int, int] = {}
        table: list[dict[str, object]] = []
        for step in self.passes:
            seen[step.block] = seen.get(step.block, 0) + 1
            table.append(
                {
                    "slot": step.slot,
                    "block": step.block,
                    "visit": seen[step.block],
                    "push": step.push,
                    "pop": step.pop,
                }
            )
        return table


class Depth:
    """How many blocks there are and in which order they are walked (spec: depth recurrence of PR 1394 and after,
    U-Net skips of the 2026-03 records).

    num_layers: number of blocks. loop_start..loop_end (inclusive): the segment that is repeated `num_loops` more times
    once recurrence is on; num_loops=0 is no recurrence. skips: the first half of the passes keeps its outputs, the
    second half takes them back in reverse order.
    Raises ValueError when the segment does not lie inside the network.
    """

    def __init__(self, *, num_layers: int, loop_start: int, loop_end: int, num_loops: int, skips: bool) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers={num_layers}: a model needs at least one layer")
        if num_loops < 0:
            raise ValueError(f"num_loops={num_loops} must be 0 (no recurrence) or more")
        if num_loops and not 0 <= loop_start <= loop_end < num_layers:
            raise ValueError(
                f"loop_start={loop_start}, loop_end={loop_end} is not a segment of layers 0..{num_layers - 1}"
            )
        self.num_layers = num_layers
        self.skips = skips
        plain = tuple(range(num_layers))
        segment = plain[loop_start : loop_end + 1] if num_loops else ()
        looped = plain[:loop_start] + segment * (num_loops + 1) + plain[loop_end + 1 :] if num_loops else plain
        self.plans = {"plain": self._plan(plain), "looped": self._plan(looped)}

    def _plan(self, blocks: tuple[int, ...]) -> LayerPlan:
        encoder = len(blocks) // 2
        passes = []
        for slot, block in enumerate(blocks):
            row = slot - encoder
            takes = self.skips and 0 <= row < encoder
            passes.append(Pass(block, slot, push=self.skips and slot < encoder, pop=row if takes else None))
        return LayerPlan(tuple(passes))

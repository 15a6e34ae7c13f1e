"""Sequences of many shards at once, each shard walked with a stride coprime to its length (records of 2026-03-29 on).

Neighbouring sequences of a shard come far apart in time, and every batch mixes documents of many shards, without the
permutations of all sequences that the shuffled loader holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.data.loaders.batch import Batch, BatchShape, check_state, row_batch, sorted_files
from pgolf.data.shards import read_shard
from pgolf.errors import UserError

FEWEST_SHARDS, MOST_SHARDS = 8, 32
"""Distinct shards of a micro-batch at the beginning and after the ramp; at least 1 and 8 times the ranks."""
FIRST_POWER, LAST_POWER = 0.90, 0.50
"""Power of what a shard has left that is its weight, at the beginning and after the ramp."""


@dataclass
class Walk:
    """One round through a shard: blocks (start + j * stride) mod blocks for j = visited, ..., blocks - 1."""

    phase: int
    blocks: int
    start: int
    stride: int
    visited: int = 0

    @property
    def left(self) -> int:
        """Blocks that this round has not visited."""
        return self.blocks - self.visited


class CoprimeStrideLoader:
    """Fixed-length sequences from several shards a micro-batch, in an order drawn once for all runs.

    A shard's round begins at a random phase below sequence_tokens, cuts what follows into blocks that do not overlap,
    and visits each block once. What lies before the phase and after the last block (less than two sequences) is left
    out of that round; the next one has another phase. Every rank simulates the whole micro-batch of all ranks and
    takes entries rank, rank + world_size, ..., so within a round no two ranks read the same block.

    The published generator was seeded from the literal paths of the shards; here from their names, so that a data set
    that was moved gives the same order. The order is therefore like the published one, and not equal to it.

    Args:
        files: token shards, used in lexicographic order. Those shorter than one sequence are never drawn.
        world_size, rank: data-parallel position.
        shape: sequence_tokens inputs a row; whole rows only.
        ramp_batches: micro-batches over which the mix widens to more shards and to more even weights.
    """

    whole_rows = True

    def __init__(self, files: Sequence[Path], world_size: int, rank: int, shape: BatchShape, *, ramp_batches: int):
        if ramp_batches < 1:
            raise ValueError(f"ramp_batches={ramp_batches} must be at least 1")
        self.files = sorted_files(files, world_size, rank)
        self.world_size, self.rank = world_size, rank
        self.rows, self.sequence_tokens, self.ramp_batches = shape.rows, shape.sequence_tokens, ramp_batches
        self._shards = [read_shard(path) for path in self.files]
        self._long_enough = [i for i, tokens in enumerate(self._shards) if len(tokens) > self.sequence_tokens]
        if not self._long_enough:
            raise UserError(
                f"no training shard holds a sequence of {self.sequence_tokens + 1} tokens; "
                "shorten the sequences or raise data.shard_tokens."
            )
        self._generator = np.random.Generator(np.random.PCG64(seed_of(self.files)))
        self.batches = 0
        self.walks = {shard: self._new_walk(shard) for shard in self._long_enough}

    def _new_walk(self, shard: int) -> Walk:
        length, tokens = self.sequence_tokens, len(self._shards[shard])
        phase = self._draw(min(length - 1, tokens - length - 1) + 1)
        blocks = (tokens - 1 - phase) // length
        start, stride = self._draw(blocks), 1
        if blocks > 2:
            coprime = [step for step in range(1, blocks) if math.gcd(step, blocks) == 1]
            stride = coprime[self._draw(len(coprime))]
        return Walk(phase, blocks, start, stride)

    def _draw(self, below: int) -> int:
        return int(self._generator.integers(below))

    def _draw_counts(self) -> dict[int, int]:
        """How many windows each chosen shard gives to this micro-batch of all ranks."""
        windows = self.rows * self.world_size
        progress = min(self.batches / self.ramp_batches, 1.0)
        power = FIRST_POWER + progress * (LAST_POWER - FIRST_POWER)
        left = np.array([max(self.walks[shard].left, 1) for shard in self._long_enough], np.float64)
        weights = left**power
        weights /= weights.sum()
        limit = min(len(self._long_enough), windows)
        fewest = min(max(FEWEST_SHARDS, self.world_size), limit)
        most = min(max(MOST_SHARDS, 8 * self.world_size), limit)
        distinct = round(fewest + progress * (most - fewest))
        chosen = self._generator.choice(len(weights), distinct, replace=False, p=weights)
        extra = self._generator.multinomial(windows - distinct, weights[chosen] / weights[chosen].sum())
        order = self._generator.permutation(distinct)
        return {self._long_enough[chosen[i]]: 1 + int(extra[i]) for i in order}

    def _take(self, shard: int) -> tuple[int, int]:
        """(shard, first token) of the shard's next window."""
        walk = self.walks[shard]
        if walk.left == 0:
            walk = self.walks[shard] = self._new_walk(shard)
        block = (walk.start + walk.visited * walk.stride) % walk.blocks
        walk.visited += 1
        return shard, walk.phase + block * self.sequence_tokens

    def draw(self) -> list[tuple[int, int]]:
        """(shard, first token) of every window of the next micro-batch of all ranks, in order."""
        queues: list[list[tuple[int, int]]] = []
        for shard, count in self._draw_counts().items():
            windows = [self._take(shard) for _ in range(count)]
            queues.append([windows[i] for i in self._generator.permutation(count)])
        mixed = []
        while queues:
            for i in self._generator.permutation(len(queues)):
                mixed.append(queues[i].pop())
            queues = [queue for queue in queues if queue]
        self.batches += 1
        return mixed

    def next(self) -> Batch:
        """The next micro-batch of this rank; inputs and targets are [rows, sequence_tokens]."""
        rows: npt.NDArray[np.int64] = np.empty((self.rows, self.sequence_tokens + 1), np.int64)
        for row, (shard, first) in zip(rows, self.draw()[self.rank :: self.world_size], strict=True):
            row[:] = self._shards[shard][first : first + self.sequence_tokens + 1]
        return row_batch(rows)

    def _identity(self) -> dict[str, Any]:
        return {
            "loader": "coprime_stride",
            "world_size": self.world_size,
            "rank": self.rank,
            "files": [path.name for path in self.files],
            "tokens": [len(tokens) for tokens in self._shards],
            "rows": self.rows,
            "sequence_tokens": self.sequence_tokens,
            "ramp_batches": self.ramp_batches,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""
        position = {
            "batches": self.batches,
            "generator": self._generator.bit_generator.state,
            "walks": [dict(vars(self.walks[shard])) for shard in self._long_enough],
        }
        return self._identity() | position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. UserError when it belongs to another run's data."""
        check_state(state, self._identity())
        self.batches = int(state["batches"])
        self._generator.bit_generator.state = state["generator"]
        self.walks = {s: Walk(**walk) for s, walk in zip(self._long_enough, state["walks"], strict=True)}


def seed_of(files: Sequence[Path]) -> int:
    """The published hash (FNV-1a without its offset, 64 bits), of the names of the shards in order."""
    value = 0
    for byte in "".join(path.name for path in files).encode():
        value = ((value ^ byte) * 1099511628211) % 2**64
    return value

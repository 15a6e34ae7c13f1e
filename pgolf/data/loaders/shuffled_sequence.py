"""Sequences of fixed length in random order: the published scripts before #1530, and calibration everywhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.data.loaders.batch import Batch, BatchShape, check_state, row_batch, sorted_files
from pgolf.data.shards import read_shard
from pgolf.errors import UserError


class ShuffledSequenceLoader:
    """Fixed-length sequences in random order (older published scripts; calibration everywhere).

    Each rank owns every world_size-th shard and a generator PCG64(rank). A shard's sequences begin
    at a random phase and are drawn without repetition; shards are drawn in proportion to what they
    have left.

    Args:
        files: token shards, used in lexicographic order.
        world_size, rank: data-parallel position.
        shape: sequence_tokens inputs a row; whole rows only.
    """

    whole_rows = True

    def __init__(self, files: Sequence[Path], world_size: int, rank: int, shape: BatchShape):
        every_file = sorted_files(files, world_size, rank)
        self.rows, self.sequence_tokens = shape.rows, shape.sequence_tokens
        self.files = every_file[rank::world_size]
        if not self.files:
            raise UserError(
                f"rank {rank} of {world_size} owns no training shard: there are only "
                f"{len(every_file)}; lower data.shard_tokens or use fewer ranks."
            )
        self.world_size, self.rank = world_size, rank
        self._shards = [read_shard(path) for path in self.files]
        self._generator = np.random.Generator(np.random.PCG64(rank))
        self.epoch = 0
        self._draw_order()
        if not any(len(starts) for starts in self.starts):
            raise UserError(
                f"no training shard of rank {rank} holds a sequence of {self.sequence_tokens + 1} "
                "tokens; shorten the sequences or raise data.shard_tokens."
            )

    def _draw_order(self) -> None:
        """Draw phase and order for every owned shard; `starts` is consumed from its end."""
        self._state_before_order = self._generator.bit_generator.state
        length = self.sequence_tokens
        self.starts: list[npt.NDArray[np.int64]] = []
        for tokens in self._shards:
            last_phase = min(length - 1, max(0, len(tokens) - length - 1))
            phase = int(self._generator.integers(last_phase + 1)) if last_phase else 0
            count = (len(tokens) - 1 - phase) // length
            self.starts.append(phase + length * self._generator.permutation(count))
        self._left = np.array([len(starts) for starts in self.starts], np.float64)

    def next(self) -> Batch:
        """The next micro-batch; inputs and targets are [rows, sequence_tokens]."""
        rows = np.empty((self.rows, self.sequence_tokens + 1), np.int64)
        for row in rows:
            total = self._left.sum()
            if total == 0:
                self.epoch += 1
                self._draw_order()
                total = self._left.sum()
            shard = int(self._generator.choice(len(self._left), p=self._left / total))
            self._left[shard] -= 1
            start = self.starts[shard][int(self._left[shard])]
            row[:] = self._shards[shard][start : start + self.sequence_tokens + 1]
        return row_batch(rows)

    def _identity(self) -> dict[str, Any]:
        return {
            "loader": "shuffled_sequence",
            "world_size": self.world_size,
            "rank": self.rank,
            "files": [path.name for path in self.files],
            "tokens": [len(tokens) for tokens in self._shards],
            "sequence_tokens": self.sequence_tokens,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values.

        The drawn orders are not stored (they can be millions of numbers) but the generator's state
        before they were drawn, and how much of each is left.
        """
        position = {
            "epoch": self.epoch,
            "before_order": self._state_before_order,
            "generator": self._generator.bit_generator.state,
            "left": [int(left) for left in self._left],
        }
        return self._identity() | position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. UserError when it belongs to another run's data."""
        check_state(state, self._identity())
        self._generator.bit_generator.state = state["before_order"]
        self._draw_order()
        self._left = np.array(state["left"], np.float64)
        self._generator.bit_generator.state = state["generator"]
        self.epoch = int(state["epoch"])


class SharedShuffledSequenceLoader(ShuffledSequenceLoader):
    """The same out of one stream of all shards, whose micro-batches the ranks take in turn: every number of ranks makes
    the same steps, which are those of ShuffledSequenceLoader on one. Each rank draws what the others take, so this is
    for small batches."""

    def __init__(self, files: Sequence[Path], world_size: int, rank: int, shape: BatchShape):
        sorted_files(files, world_size, rank)  # refuses a rank that does not exist
        super().__init__(files, 1, 0, shape)
        self.ranks, self.own = world_size, rank

    def next(self) -> Batch:
        """The micro-batch of this rank among the next ones of all ranks."""
        drawn = []
        for _ in range(self.ranks):
            drawn.append(super().next())
        return drawn[self.own]

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {
            "loader": "shared_shuffled_sequence",
            "world_size": self.ranks,
            "rank": self.own,
        }

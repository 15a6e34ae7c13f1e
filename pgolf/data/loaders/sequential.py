"""The token stream from front to back: the loader of the baseline script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.data.loaders.batch import Batch, BatchShape, ReadAhead, check_state, in_memory, sorted_files
from pgolf.data.loaders.order import ShardOrder
from pgolf.data.shards import Tokens, shard_length
from pgolf.errors import UserError


class SequentialLoader:
    """All shards as one endless stream, cut into spans (baseline `DistributedTokenLoader`).

    Every micro-step all ranks together read world_size spans of micro_batch_tokens + 1 tokens; rank r takes span r
    and lays it out as rows of sequence_tokens. Spans do not overlap: each token of the shards is read exactly once an
    epoch, the last of a span as a target only. Rows begin anywhere in a document and run over document and shard ends.

    Args:
        files: token shards, used in lexicographic order or in `order`, again from the first after the last.
        world_size, rank: data-parallel position.
        shape: sequence_tokens inputs a row; whole rows only.
    """

    whole_rows = True

    def __init__(
        self, files: Sequence[Path], world_size: int, rank: int, shape: BatchShape, *, order: ShardOrder | None = None
    ):
        self.files = sorted_files(files, world_size, rank, order)
        self.world_size, self.rank = world_size, rank
        self.rows, self.sequence_tokens = shape.rows, shape.sequence_tokens
        self.span = shape.micro_batch_tokens + 1
        self._lengths = [shard_length(path) for path in self.files]
        if not any(self._lengths):
            raise UserError("the training shards hold no token at all: prepare the data again.")
        self._reader = ReadAhead(self.files, in_memory)
        self.epoch = self.shard = self.cursor = 0
        self._tokens = self._reader.open(0)

    def next(self) -> Batch:
        """The next micro-batch of this rank; inputs and targets are [rows, sequence_tokens]."""
        self._read(self.rank * self.span)
        span = torch.from_numpy(np.concatenate(self._read(self.span)).astype(np.int64))
        self._read((self.world_size - self.rank - 1) * self.span)
        return Batch(span[:-1].view(self.rows, -1), span[1:].view(self.rows, -1), None)

    def _read(self, count: int) -> list[Tokens]:
        """The next `count` tokens of the stream, as views of one or more shards."""
        parts: list[Tokens] = []
        while count:
            if self.cursor == len(self._tokens):
                self.shard = (self.shard + 1) % len(self.files)
                self.epoch += self.shard == 0
                self._tokens, self.cursor = self._reader.open(self.shard), 0
            parts.append(self._tokens[self.cursor : self.cursor + count])
            self.cursor += len(parts[-1])
            count -= len(parts[-1])
        return parts

    def _identity(self) -> dict[str, Any]:
        return {
            "loader": "sequential",
            "world_size": self.world_size,
            "rank": self.rank,
            "files": [path.name for path in self.files],
            "tokens": self._lengths,
            "micro_batch_tokens": self.span - 1,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""
        return self._identity() | {"epoch": self.epoch, "shard": self.shard, "cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. UserError when it belongs to another run's data."""
        check_state(state, self._identity())
        self.epoch, self.shard, self.cursor = int(state["epoch"]), int(state["shard"]), int(state["cursor"])
        self._tokens = self._reader.open(self.shard)

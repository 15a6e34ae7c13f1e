"""Documents packed into rows, as the published record scripts draw them from #1530 on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.loaders.batch import Batch, BatchShape, ReadAhead, check_state, in_memory, sorted_files
from pgolf.data.loaders.order import ShardOrder
from pgolf.data.shards import Tokens, shard_length
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError
from pgolf.kernels.packing import build_cu_seqlens


class DocumentPackingLoader:
    """Consecutive documents packed into one row (published in #1736 and its relatives).

    Every micro-step all ranks together read world_size spans of micro_batch_tokens + 1 tokens;
    spans do not overlap, so a rank's last target is not the next rank's first input. When the
    current shard has too little left, the next one begins at its first BOS: the tail of a document
    begun in the shard before, and the unread tail of the old shard, are not used.

    Args:
        files: token shards, used in lexicographic order or in `order`, again from the first after the last.
        world_size, rank: data-parallel position.
        shape: documents longer than its sequence_tokens are cut into segments of that length.
        bucket: cu_seqlens is padded to a multiple of this.
        spans_per_fit: for how many spans together "does it fit in this shard" is tested. `ranks`:
            those of one micro-step, as the published scripts do (#1855 and before). `step`: those of
            a whole optimiser step, so that every number of ranks sees the same spans, near shard
            ends too; with one micro-batch a rank and step (the records' 8 ranks) the two are one.
    """

    whole_rows = False

    def __init__(
        self,
        files: Sequence[Path],
        world_size: int,
        rank: int,
        shape: BatchShape,
        *,
        bucket: int = 64,
        spans_per_fit: Literal["step", "ranks"] = "step",
        order: ShardOrder | None = None,
    ):
        self.files = sorted_files(files, world_size, rank, order)
        self.world_size, self.rank = world_size, rank
        self.max_document_tokens, self.bucket = shape.sequence_tokens, bucket
        self.micro_batch_tokens = shape.micro_batch_tokens
        if bucket < 1:
            raise ValueError(f"bucket={bucket} must be positive")
        spans = shape.micro_batches if spans_per_fit == "step" else world_size
        if spans % world_size:
            raise ValueError(f"the {spans} micro-batches of a step must be a multiple of the {world_size} ranks")
        self.span = self.micro_batch_tokens + 1
        self.calls_per_fit = spans // world_size
        self._lengths = [shard_length(path) for path in self.files]
        self._refuse_short_shards(spans)
        self._reader = ReadAhead(self.files, _load)
        self.epoch = self.shard = self.cursor = self._calls = 0
        self._open(0)

    def _refuse_short_shards(self, spans: int) -> None:
        longest = max(self._lengths)
        if longest < spans * self.span:
            raise UserError(
                f"no training shard is long enough: {spans} spans of {self.span} tokens are read "
                f"together, the longest shard has {longest} tokens; lower the batch "
                "(train.micro_batch_tokens) or raise data.shard_tokens."
            )

    def _open(self, shard: int) -> None:
        self.shard = shard
        self._tokens, self._bos = self._reader.open(shard)
        self.cursor = int(self._bos[0])

    def _advance_until_it_fits(self) -> None:
        needed = self.calls_per_fit * self.world_size * self.span
        for _ in range(len(self.files) + 1):
            if self.cursor + needed <= len(self._tokens):
                return
            if self.shard + 1 == len(self.files):
                self.epoch += 1
            self._open((self.shard + 1) % len(self.files))
        raise UserError(
            f"no training shard has {needed} tokens after its first BOS: lower the batch "
            "(train.micro_batch_tokens) or raise data.shard_tokens."
        )

    def next(self) -> Batch:
        """The next micro-batch of this rank; inputs and targets are [1, micro_batch_tokens]."""
        if self._calls % self.calls_per_fit == 0:
            self._advance_until_it_fits()
        self._calls += 1
        start = self.cursor + self.rank * self.span
        end = start + self.span
        self.cursor += self.world_size * self.span
        row = torch.from_numpy(self._tokens[start:end].astype(np.int64))
        first, last = np.searchsorted(self._bos, (start, end - 1))
        cu_seqlens = build_cu_seqlens(
            self._bos[first:last] - start,
            self.micro_batch_tokens,
            self.max_document_tokens,
            self.bucket,
        )
        return Batch(row[None, :-1], row[None, 1:], cu_seqlens)

    def _identity(self) -> dict[str, Any]:
        return {
            "loader": "document_packing",
            "world_size": self.world_size,
            "rank": self.rank,
            "files": [path.name for path in self.files],
            "tokens": self._lengths,
            "micro_batch_tokens": self.micro_batch_tokens,
            "calls_per_fit": self.calls_per_fit,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain values."""
        position = {
            "epoch": self.epoch,
            "shard": self.shard,
            "cursor": self.cursor,
            "calls": self._calls,
        }
        return self._identity() | position

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. UserError when it belongs to another run's data."""
        check_state(state, self._identity())
        self._open(int(state["shard"]))
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])
        self._calls = int(state["calls"])


def _load(path: Path) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Tokens uint16 [n], sorted BOS positions int64. UserError when damaged or without BOS."""
    tokens = in_memory(path)
    bos = np.flatnonzero(tokens == BOS_ID)
    if len(bos) == 0:
        raise UserError(
            f"the shard {path} has no document start (id {BOS_ID}), so documents "
            "cannot be packed; prepare the data with BOS before each document."
        )
    return tokens, bos

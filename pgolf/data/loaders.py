"""Training batches out of token shards, exactly as the published record scripts draw them.

Neither loader depends on the run's seed: the published data order is the same for every seed, and
an ablation must see the same data. Both can be saved and resumed to the token.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.shards import Tokens, read_shard, shard_length
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError
from pgolf.kernels.packing import build_cu_seqlens


class Batch(NamedTuple):
    """One micro-batch on the CPU.

    Attributes:
        inputs: int64 [rows, T].
        targets: int64 [rows, T]; the token after each input.
        cu_seqlens: int32 [segments + 1, padded] starts of the packed documents and T at the end;
            None when rows are not packed.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor | None


def _sorted_files(files: Sequence[Path], world_size: int, rank: int) -> list[Path]:
    if not files:
        raise UserError("there is no training shard to load.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} does not exist in a world of {world_size}")
    return sorted(Path(file) for file in files)


def _check_state(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """UserError when a saved position belongs to other files or to another batch shape."""
    for key, value in expected.items():
        if state.get(key) != value:
            raise UserError(
                f"the saved data position cannot be resumed: its {key} is {state.get(key)!r}, this "
                f"run has {value!r}; resume with the configuration and the data of the interrupted "
                "run."
            )


class DocumentPackingLoader:
    """Consecutive documents packed into one row (published in #1736 and its relatives).

    Every micro-step all ranks together read world_size spans of micro_batch_tokens + 1 tokens;
    spans do not overlap, so a rank's last target is not the next rank's first input. When the
    current shard has
    too little left, the next one begins at its first BOS: the tail of a document begun in the shard
    before, and the unread tail of the old shard, are not used.

    Args:
        files: token shards, used in lexicographic order, again from the first after the last.
        world_size, rank: data-parallel position.
        micro_batch_tokens: inputs per rank and call.
        max_document_tokens: longer documents are cut into segments of this length (0: never).
        bucket: cu_seqlens is padded to a multiple of this.
        spans_per_fit: the "does it fit in this shard" test covers this many spans and is made once
            for all of them; None is the published world_size. With 8 and one rank, eight calls see
            exactly the spans of one call on eight ranks, near shard ends too.
    """

    def __init__(
        self,
        files: Sequence[Path],
        world_size: int,
        rank: int,
        *,
        micro_batch_tokens: int,
        max_document_tokens: int,
        bucket: int = 64,
        spans_per_fit: int | None = None,
    ):
        self.files = _sorted_files(files, world_size, rank)
        self.world_size, self.rank = world_size, rank
        self.max_document_tokens, self.bucket = max_document_tokens, bucket
        self.micro_batch_tokens = micro_batch_tokens
        spans = world_size if spans_per_fit is None else spans_per_fit
        if micro_batch_tokens < 1 or max_document_tokens < 0 or bucket < 1:
            raise ValueError("micro_batch_tokens and bucket must be positive, max_document_tokens not negative")
        if spans < world_size or spans % world_size:
            raise ValueError(f"spans_per_fit={spans} must be a multiple of the {world_size} ranks")
        self.span = micro_batch_tokens + 1
        self.calls_per_fit = spans // world_size
        self._lengths = [shard_length(path) for path in self.files]
        self._refuse_short_shards(spans)
        self._reader = _ShardReader(self.files)
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
        _check_state(state, self._identity())
        self._open(int(state["shard"]))
        self.epoch, self.cursor = int(state["epoch"]), int(state["cursor"])
        self._calls = int(state["calls"])


class _ShardReader:
    """Shards in memory with their BOS positions; the next is read while the current is used."""

    def __init__(self, files: Sequence[Path]):
        self.files = files
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-reader")
        self._pending: dict[int, Future[tuple[Tokens, npt.NDArray[np.int64]]]] = {}

    def open(self, shard: int) -> tuple[Tokens, npt.NDArray[np.int64]]:
        """Tokens uint16 [n], sorted BOS positions int64. UserError when damaged or without BOS."""
        pending = self._pending.pop(shard, None)
        loaded = self._load(shard) if pending is None else pending.result()
        following = (shard + 1) % len(self.files)
        if following != shard:
            self._pending = {following: self._pool.submit(self._load, following)}
        return loaded

    def _load(self, shard: int) -> tuple[Tokens, npt.NDArray[np.int64]]:
        tokens = np.array(read_shard(self.files[shard]))
        bos = np.flatnonzero(tokens == BOS_ID)
        if len(bos) == 0:
            raise UserError(
                f"the shard {self.files[shard]} has no document start (id {BOS_ID}), so documents "
                "cannot be packed; prepare the data with BOS before each document."
            )
        return tokens, bos


class ShuffledSequenceLoader:
    """Fixed-length sequences in random order (older published scripts; calibration everywhere).

    Each rank owns every world_size-th shard and a generator PCG64(rank). A shard's sequences begin
    at a random phase and are drawn without repetition; shards are drawn in proportion to what they
    have left.

    Args:
        files: token shards, used in lexicographic order.
        world_size, rank: data-parallel position.
        micro_batch_tokens: inputs per rank and call, a multiple of sequence_tokens.
        sequence_tokens: inputs per row.
    """

    def __init__(
        self,
        files: Sequence[Path],
        world_size: int,
        rank: int,
        *,
        micro_batch_tokens: int,
        sequence_tokens: int,
    ):
        every_file = _sorted_files(files, world_size, rank)
        if sequence_tokens < 1 or micro_batch_tokens < 1 or micro_batch_tokens % sequence_tokens:
            raise ValueError(
                f"micro_batch_tokens={micro_batch_tokens} must be a positive multiple of "
                f"sequence_tokens={sequence_tokens}"
            )
        self.files = every_file[rank::world_size]
        if not self.files:
            raise UserError(
                f"rank {rank} of {world_size} owns no training shard: there are only "
                f"{len(every_file)}; lower data.shard_tokens or use fewer ranks."
            )
        self.world_size, self.rank = world_size, rank
        self.sequence_tokens = sequence_tokens
        self.rows = micro_batch_tokens // sequence_tokens
        self._shards = [read_shard(path) for path in self.files]
        self._generator = np.random.Generator(np.random.PCG64(rank))
        self.epoch = 0
        self._draw_order()
        if not any(len(starts) for starts in self.starts):
            raise UserError(
                f"no training shard of rank {rank} holds a sequence of {sequence_tokens + 1} "
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
        batch = torch.from_numpy(rows)
        return Batch(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), None)

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
        _check_state(state, self._identity())
        self._generator.bit_generator.state = state["before_order"]
        self._draw_order()
        self._left = np.array(state["left"], np.float64)
        self._generator.bit_generator.state = state["generator"]
        self.epoch = int(state["epoch"])

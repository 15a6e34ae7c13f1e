"""What every loader takes and gives."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pgolf.data.loaders.order import ShardOrder
from pgolf.data.shards import Tokens, read_shard
from pgolf.errors import UserError

Opened = TypeVar("Opened")


class Batch(NamedTuple):
    """One micro-batch on the CPU.

    Attributes:
        inputs: int64 [rows, T].
        targets: int64 [rows, T]; the token after each input.
        cu_seqlens: int32 [segments + 1, padded] starts of the packed documents and T at the end;
            None when rows are not packed: each row is a sequence of its own.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor | None


@dataclass(frozen=True)
class BatchShape:
    """How many tokens a loader gives at a time.

    Attributes:
        micro_batch_tokens: inputs of one micro-batch of one rank.
        sequence_tokens: inputs per row; where documents are packed, the longest piece of one (0: never cut).
        micro_batches: micro-batches of one optimiser step, over all ranks.
    """

    micro_batch_tokens: int
    sequence_tokens: int
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.micro_batch_tokens < 1 or self.sequence_tokens < 0 or self.micro_batches < 1:
            raise ValueError(f"impossible batch: {self}; micro_batch_tokens and micro_batches must be positive")

    @property
    def rows(self) -> int:
        """Rows of a micro-batch that is not packed. ValueError when they do not fill it."""
        if self.sequence_tokens < 1 or self.micro_batch_tokens % self.sequence_tokens:
            raise ValueError(
                f"micro_batch_tokens={self.micro_batch_tokens} must be a positive multiple of "
                f"sequence_tokens={self.sequence_tokens}: this loader gives whole rows"
            )
        return self.micro_batch_tokens // self.sequence_tokens


class Loader(Protocol):
    """A stream of micro-batches of one rank, without end."""

    def next(self) -> Batch:
        """The next micro-batch."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. UserError when it belongs to another run's data."""


class TrainFiles(Protocol):
    """What training reads of a prepared data set: the token shards, in order."""

    @property
    def train_files(self) -> list[Path]:
        """The files."""


MakeLoader = Callable[[Sequence[Path], int, int, BatchShape], Loader]
"""loader(files, world_size, rank, shape): what a node of `train/loader` becomes."""


def sorted_files(files: Sequence[Path], world_size: int, rank: int, order: ShardOrder | None = None) -> list[Path]:
    """Shards in lexicographic order, or in another. UserError without any, ValueError for a rank that does not
    exist."""
    if not files:
        raise UserError("there is no training shard to load.")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} does not exist in a world of {world_size}")
    by_name = sorted(Path(file) for file in files)
    return by_name if order is None else order(by_name)


def check_state(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """UserError when a saved position belongs to other files or to another batch shape."""
    for key, value in expected.items():
        if state.get(key) != value:
            raise UserError(
                f"the saved data position cannot be resumed: its {key} is {state.get(key)!r}, this "
                f"run has {value!r}; resume with the configuration and the data of the interrupted "
                "run."
            )


def row_batch(rows: npt.NDArray[np.int64]) -> Batch:
    """A batch of rows [n, T + 1] that are sequences of their own."""
    batch = torch.from_numpy(rows)
    return Batch(batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), None)


def in_memory(path: Path) -> Tokens:
    """A shard's tokens, uint16 [n], read at once (a memory map would wait for the disk at every batch)."""
    return np.array(read_shard(path))


class ReadAhead(Generic[Opened]):
    """Shards by number; while one is used, a thread reads the one after it."""

    def __init__(self, files: Sequence[Path], load: Callable[[Path], Opened]):
        self.files, self._load = files, load
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shard-reader")
        self._pending: dict[int, Future[Opened]] = {}

    def open(self, shard: int) -> Opened:
        """What `load` makes of this shard; its errors come from here."""
        pending = self._pending.pop(shard, None)
        loaded = self._load(self.files[shard]) if pending is None else pending.result()
        following = (shard + 1) % len(self.files)
        if following != shard:
            self._pending = {following: self._pool.submit(self._load, self.files[following])}
        return loaded

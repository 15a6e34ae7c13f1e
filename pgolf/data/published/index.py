"""The document index of shards that others wrote: hash, bytes and tokens of each document, from the tokens alone.

Where the tokenizer normalised, the original texts are not there: a row's hash is that of the token ids (little-endian
uint16), which tells documents apart as well as their text would, and its bytes are those that the tokens are charged.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pgolf.console import Console, Task
from pgolf.data.dataset import table_bytes
from pgolf.data.encoding.caseops import ESC, OPERATORS
from pgolf.data.encoding.frontend import FrontEnd
from pgolf.data.index import Rows, make_rows
from pgolf.data.preparation.processes import count_cores, in_processes
from pgolf.data.published.checks import caseops_ids
from pgolf.data.shards import Tokens, read_shard, shard_length
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError

CHUNK_TOKENS = 4_000_000
INLINE_TOKENS = 2**24  # Fewer are read in this process: others take a second to start.


class ShardScan(NamedTuple):
    """The documents of one shard.

    Attributes:
        head: tokens before the first BOS: the end of a document of earlier shards. The whole shard without a BOS.
        tail: tokens after the last BOS: the beginning of a document that may go on. None without a BOS.
        head_bytes, tail_bytes: what those are charged.
        digests, tokens, bytes: of the documents that begin and end in the shard.
    """

    head: Tokens
    head_bytes: int
    digests: list[bytes]
    tokens: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    tail: Tokens | None
    tail_bytes: int


class ShardPlace(NamedTuple):
    """A shard, the token before it, and whether that token escapes the first one (CaseOps)."""

    path: Path
    previous: int
    escaped: bool


def index_shards(front_end: FrontEnd, files: list[Path], console: Console, title: str) -> Rows:
    """The rows of a split. UserError when its first shard does not begin with BOS."""
    total = sum(shard_length(path) for path in files)
    places = list(_places(front_end, files))
    with console.task(title, len(files)) as task:
        if total > INLINE_TOKENS:
            scans: Iterable[ShardScan] = (found for _, found in in_processes(scan, front_end, places, count_cores()))
        else:
            scans = (scan(front_end, place) for place in places)
        return _join(front_end, _shown(scans, task), files[0])


def scan(front_end: FrontEnd, place: ShardPlace) -> ShardScan:
    """Read one shard."""
    values = read_shard(place.path)
    sizes = charged_bytes(front_end, values, place.previous, place.escaped)
    starts = np.flatnonzero(values == BOS_ID)
    if not len(starts):
        return ShardScan(np.array(values), int(sizes.sum(dtype=np.int64)), [], *_nothing(), None, 0)
    sums = _sums(sizes, starts)
    return ShardScan(
        head=np.array(values[: starts[0]]),
        head_bytes=int(sizes[: starts[0]].sum(dtype=np.int64)),
        digests=[_digest(front_end, values[start + 1 : end]) for start, end in pairwise(starts.tolist())],
        tokens=np.diff(starts) - 1,
        bytes=sums[:-1],
        tail=np.array(values[starts[-1] + 1 :]),
        tail_bytes=int(sums[-1]),
    )


def charged_bytes(
    front_end: FrontEnd, values: Tokens, previous: int = BOS_ID, escaped: bool = False
) -> npt.NDArray[np.uint16]:
    """uint16 [n]: bytes each token of a stream stands for, from the ids alone.

    Plain text: the table rule. CaseOps: the surface rule (an operator stands for nothing, unless it is escaped).

    Args:
        previous: the token before the stream.
        escaped: that token escapes the stream's first one.
    """
    sizes = np.empty(len(values), np.uint16)
    if front_end.transform is None:
        for start in range(0, len(values), CHUNK_TOKENS):
            chunk = np.concatenate([[previous], values[start : start + CHUNK_TOKENS]]).astype(np.uint16)
            sizes[start : start + CHUNK_TOKENS] = table_bytes(front_end, chunk)[1:]
            previous = int(chunk[-1])
        return sizes
    operators = caseops_ids(front_end)
    table = np.array([len(piece) for piece in front_end.tokenizer.piece_bytes], np.uint16)
    table[operators] = 0
    for start in range(0, len(values), CHUNK_TOKENS):  # Indexing takes eight bytes a token.
        sizes[start : start + CHUNK_TOKENS] = table[values[start : start + CHUNK_TOKENS]]
    literal = 0 if escaped else -1  # The last token that is escaped.
    if escaped and int(values[0]) in operators:
        sizes[0] = len(ESC.encode())
    for index in np.flatnonzero(values == operators[OPERATORS.index(ESC)]).tolist():
        if index != literal:
            literal = index + 1
            if literal < len(values) and int(values[literal]) in operators:
                sizes[literal] = len(ESC.encode())
    return sizes


def _sums(sizes: npt.NDArray[np.uint16], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Sums from each start to the next, the last to the end; in parts, because adding widens to eight bytes a token."""
    cuts = np.unique(np.searchsorted(starts, np.arange(int(starts[0]), len(sizes), CHUNK_TOKENS)))
    ends = np.append(starts, len(sizes))
    parts = [
        np.add.reduceat(sizes[ends[first] : ends[last]], starts[first:last] - starts[first], dtype=np.int64)
        for first, last in pairwise([*cuts[cuts < len(starts)].tolist(), len(starts)])
    ]
    return np.concatenate(parts)


def _places(front_end: FrontEnd, files: list[Path]) -> Iterator[ShardPlace]:
    operators = caseops_ids(front_end) if front_end.transform is not None else []
    escape = operators[OPERATORS.index(ESC)] if operators else None
    previous, escaped = BOS_ID, False
    for path in files:
        yield ShardPlace(path, previous, escaped)
        values = read_shard(path)
        others = np.flatnonzero(values[-100:] != escape)
        # An odd run of escapes at the end leaves the next token escaped (a run of a hundred is no text).
        escaped = (len(values[-100:]) - 1 - (int(others[-1]) if len(others) else -1)) % 2 == 1
        previous = int(values[-1])


def _shown(scans: Iterable[ShardScan], task: Task) -> Iterator[ShardScan]:
    for done, found in enumerate(scans, 1):
        yield found
        task.update(done)


def _join(front_end: FrontEnd, scans: Iterable[ShardScan], first: Path) -> Rows:
    """The rows of all shards, documents that cross shard ends joined."""
    digests: list[bytes] = []
    tokens: list[npt.NDArray[np.int64]] = []
    sizes: list[npt.NDArray[np.int64]] = []
    waiting: list[Tokens] | None = None
    waiting_bytes = 0

    def close() -> None:
        assert waiting is not None
        ids = np.concatenate(waiting)
        digests.append(_digest(front_end, ids))
        tokens.append(np.array([len(ids)]))
        sizes.append(np.array([waiting_bytes]))

    for found in scans:
        if waiting is None and (len(found.head) or found.tail is None):
            raise UserError(f"the shard {first} does not begin with a document (id {BOS_ID}).")
        if waiting is not None:
            waiting.append(found.head)
            waiting_bytes += found.head_bytes
        if found.tail is None:
            continue
        if waiting is not None:
            close()
        digests += found.digests
        tokens.append(found.tokens)
        sizes.append(found.bytes)
        waiting, waiting_bytes = [found.tail], found.tail_bytes
    close()
    return make_rows(digests, np.concatenate(sizes), np.concatenate(tokens))


def _digest(front_end: FrontEnd, ids: Tokens) -> bytes:
    if front_end.lossless:
        return hashlib.sha256(front_end.decode(ids).encode()).digest()
    return hashlib.sha256(np.ascontiguousarray(ids, "<u2").data).digest()


def _nothing() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64)

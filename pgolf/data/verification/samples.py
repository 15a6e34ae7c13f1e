"""What is looked at of prepared shards whenever they are opened: a part small enough to read at every start.

A shard of another preparation, two shards in each other's place, or a piece that was never written has the right size
and a right header; but documents do not begin in it where the index says. All of it is read by `pgolf data verify`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.index import DocumentIndex
from pgolf.data.shards import Tokens, read_shard
from pgolf.errors import UserError

WINDOW_TOKENS = 2**16  # Some 50 documents of the published length.


def windows(values: Tokens) -> Iterator[tuple[int, Tokens]]:
    """(first, tokens) of the beginning, the middle and the end of a shard; all of a short one."""
    last = max(len(values) - WINDOW_TOKENS, 0)
    for first in sorted({0, last // 2, last}):
        yield first, values[first : first + WINDOW_TOKENS]


def check_samples(directory: Path, manifest: dict[str, Any]) -> None:
    """UserError when a sample of a training shard holds other beginnings of documents than the index, or ids beyond
    the vocabulary. The validation shards are read as a whole where they are used."""
    starts, offset = DocumentIndex(directory, "train").starts, 0
    for name in manifest["splits"]["train"]["files"]:
        values = read_shard(directory / name)
        for first, sample in windows(values):
            begin = offset + first
            found = np.flatnonzero(sample == manifest["bos_id"]) + begin
            expected = starts[np.searchsorted(starts, begin) : np.searchsorted(starts, begin + len(sample))]
            if not np.array_equal(found, expected):
                raise UserError(
                    f"in {directory / name}, between token {first} and {first + len(sample)}, documents do not begin "
                    "where the index says: it is a shard of other data, in the wrong place, or not written wholly. "
                    f"`pgolf data verify {directory}` says more; delete the directory and make it again."
                )
            if sample.size and int(sample.max()) >= manifest["vocab_size"]:
                raise UserError(
                    f"{directory / name} holds the id {sample.max()}, the vocabulary ends at {manifest['vocab_size']}: "
                    "it was written with another tokenizer. Delete the directory and make it again."
                )
        offset += len(values)

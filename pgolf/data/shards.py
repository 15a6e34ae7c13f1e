"""The published shard container, for tokens and for byte counts: a header, then uint16 values.

Header: 256 int32; word 0 = 20240520, word 1 = 1 (version), word 2 = number of values, the rest 0.
All little-endian.
Documents follow one another, each begun by BOS; a document may go on in the next shard.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pgolf.errors import UserError
from pgolf.files import atomic_open

MAGIC, VERSION = 20240520, 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
BLOCK = 2**22  # Values looked at together.
Tokens = npt.NDArray[np.uint16]


def write_shard(path: Path, values: npt.NDArray[np.integer]) -> None:
    """Write one shard atomically. ValueError when a value does not fit in uint16."""
    if values.ndim != 1 or (values.size and (values.min() < 0 or values.max() > 65_535)):
        raise ValueError(f"{path.name}: a shard holds one row of values between 0 and 65535")
    header = np.zeros(HEADER_WORDS, "<i4")
    header[:3] = MAGIC, VERSION, len(values)
    with atomic_open(path) as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(values, "<u2").data)


def shard_length(path: Path) -> int:
    """Number of values, after checking magic, version and size. UserError says what is wrong."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
            size = file.seek(0, 2)
    except OSError as error:
        raise UserError(f"cannot read the shard {path}: {error.strerror or error}.") from error
    if len(raw) < HEADER_BYTES:
        raise UserError(f"the shard {path} is truncated: it has {size} bytes, less than a header of {HEADER_BYTES}.")
    magic, version, length = (int(word) for word in np.frombuffer(raw, "<i4", 3))
    if not any(raw):
        raise UserError(f"the shard {path} is filled with zeros: its storage or its download did not finish.")
    if magic != MAGIC:
        raise UserError(f"{path} is not a token shard: it begins with {magic}, a shard begins with {MAGIC}.")
    if version != VERSION:
        raise UserError(f"the shard {path} has version {version}; only version {VERSION} can be read.")
    expected = HEADER_BYTES + 2 * length
    if length < 0 or size != expected:
        what = "is truncated" if size < expected else "is too long"
        raise UserError(f"the shard {path} {what}: it has {size} bytes, its header promises {expected}.")
    return length


def read_shard(path: Path) -> Tokens:
    """The values of a shard as a read-only memory map, uint16 [n]. UserError when it is damaged.

    A tail of zeros is refused: no text ends in padding (or in tokens of no bytes), but files whose
    space was reserved and never written do.
    """
    length = shard_length(path)
    if length == 0:
        return np.zeros(0, np.uint16)
    values = np.memmap(path, "<u2", "r", HEADER_BYTES, (length,))
    if length > 1 and not values[-1024:].any():
        raise UserError(f"the shard {path} ends in zeros: its storage or its download did not finish.")
    return values


def blocks(values: Tokens) -> Iterator[tuple[int, Tokens]]:
    """(first, values) of consecutive parts of a shard: what is computed of 10^8 values at once can take gigabytes."""
    for first in range(0, len(values), BLOCK):
        yield first, values[first : first + BLOCK]


def histogram(path: Path, vocab_size: int) -> npt.NDArray[np.int64]:
    """int64 [vocab_size, or more where a larger id is there]: how often each id stands in a shard."""
    counts = np.zeros(vocab_size, np.int64)
    for _, block in blocks(read_shard(path)):
        found = np.bincount(block, minlength=vocab_size)
        if len(found) > len(counts):
            counts = np.pad(counts, (0, len(found) - len(counts)))
        counts[: len(found)] += found
    return counts


def iterate_documents(files: Sequence[Path], bos_id: int) -> Iterator[Tokens]:
    """The documents of a shard sequence, without their BOS; one that crosses a shard end is joined.

    UserError when the first shard does not begin with BOS.
    """
    open_document: list[Tokens] | None = None
    for path in files:
        values = read_shard(path)
        starts = np.flatnonzero(values == bos_id)
        if open_document is None and (len(starts) == 0 or starts[0] != 0):
            raise UserError(f"the shard {path} does not begin with a document (id {bos_id}).")
        first = int(starts[0]) if len(starts) else len(values)
        if open_document is not None:
            open_document.append(values[:first])
        ends = np.append(starts, len(values))[1:]  # None when no document starts here.
        for start, end in zip(starts, ends, strict=True):
            if open_document is not None:
                yield np.concatenate(open_document)
            open_document = [values[start + 1 : end]]
    if open_document is not None:
        yield np.concatenate(open_document)


class TokenStream:
    """The values of a shard sequence as one stream; any part of it can be read without reading the rest."""

    def __init__(self, files: Sequence[Path]):
        self._files = list(files)
        self._ends = np.cumsum([shard_length(path) for path in self._files], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, end: int) -> Tokens:
        """A copy of the values from `start` up to `end`, uint16. UserError when a shard is damaged."""
        parts = []
        first = int(np.searchsorted(self._ends, start, "right"))
        for path, shard_end in zip(self._files[first:], self._ends[first:], strict=True):
            values = read_shard(path)
            begin = int(shard_end) - len(values)
            if begin >= end:
                break
            parts.append(values[max(start - begin, 0) : end - begin])
        return np.concatenate(parts) if parts else np.zeros(0, np.uint16)

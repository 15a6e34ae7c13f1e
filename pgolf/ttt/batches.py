"""In which order documents are adapted to, together with which, and in chunks of how many positions."""

from dataclasses import dataclass
from typing import Literal

Order = Literal["longest_first", "fewest_chunks_first", "file"]


@dataclass(frozen=True)
class DocumentBatch:
    """Documents that are scored together, those with most chunks first; index counts batches from the shortest up
    (or through the file)."""

    index: int
    documents: tuple[int, ...]
    chunk: int


class ChunkSizes:
    """Positions between two adapter steps: `chunk`, or less in a batch of short documents.

    short: [longest, chunk] pairs; the first pair whose `longest` the batch's longest document does not exceed decides
    (PR 2014: [[256, 8], [2000, 24]]). A document's length counts the first token of the next, which it is charged for.
    Raises ValueError when a pair is not two positive numbers, or they do not ascend.
    """

    def __init__(self, chunk: int, short: list[list[int]]) -> None:
        if any(len(pair) != 2 or min(pair) < 1 for pair in short):
            raise ValueError(f"ttt.short_chunks={short}: give pairs [longest document, chunk], both at least 1")
        if [pair[0] for pair in short] != sorted({pair[0] for pair in short}):
            raise ValueError(f"ttt.short_chunks={short}: the first numbers must ascend")
        self._short, self._chunk = short, chunk

    def of(self, longest: int) -> int:
        """The chunk of a batch whose longest document has `longest` tokens."""
        return next((chunk for limit, chunk in self._short if longest <= limit), self._chunk)

    def at_most(self, limit: int) -> "ChunkSizes":
        """The same rule with no chunk larger than `limit`."""
        return ChunkSizes(min(self._chunk, limit), [[longest, min(chunk, limit)] for longest, chunk in self._short])

    @property
    def largest(self) -> int:
        """The largest chunk that can occur."""
        return max([self._chunk, *(chunk for _, chunk in self._short)])


def document_batches(
    lengths: list[int], rows: int, order: Order = "longest_first", sizes: ChunkSizes | None = None
) -> list[DocumentBatch]:
    """Batches of `rows` documents in the order in which they are scored.

    longest_first: sorted by length and cut from the shortest up; the batch with the longest document comes first, and
    may be smaller than the others (PR 1530). fewest_chunks_first: sorted by number of chunks, shortest batch first
    (2026-03-17). file: as they stand in the validation text.
    """
    sizes = sizes or ChunkSizes(1, [])
    keys = {
        "longest_first": lambda document: lengths[document],
        "fewest_chunks_first": lambda document: (lengths[document] - 2) // sizes.largest,
        "file": lambda document: 0,
    }
    ascending = sorted(range(len(lengths)), key=keys[order])
    batches = []
    for start in range(0, len(ascending), rows):
        members = ascending[start : start + rows]
        chunk = sizes.of(max(lengths[document] for document in members))
        members.sort(key=lambda document: (lengths[document] - 2) // chunk)
        batches.append(DocumentBatch(start // rows, tuple(reversed(members)), chunk))
    if order == "longest_first":
        batches.sort(key=lambda batch: -lengths[batch.documents[0]])
    return batches


def phase_boundaries(num_documents: int, prefix_docs: int, phases: int) -> list[int]:
    """How many documents must be finished before each global phase (published rule: equal parts of the prefix,
    rounded down)."""
    prefix = min(num_documents, prefix_docs)
    return [prefix * (phase + 1) // phases for phase in range(phases)]


def learnable(finished: list[DocumentBatch], limit: int) -> list[int]:
    """Finished documents, the batch of lowest index first and in it the shortest first, cut to `limit`.

    With the longest documents scored first, the cut leaves out the very longest, as published (PR 1610).
    """
    ascending = sorted(finished, key=lambda batch: batch.index)
    return [document for batch in ascending for document in reversed(batch.documents)][:limit]

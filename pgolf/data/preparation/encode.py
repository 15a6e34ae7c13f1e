"""Encoding batches of documents, checked, in this process or in several."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pgolf.data.encoding.frontend import Encoded, FrontEnd
from pgolf.data.preparation.processes import in_processes
from pgolf.data.sources.documents import Document, Split
from pgolf.data.validation import BOS_ID
from pgolf.errors import UserError

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 2**20
INLINE_CHARACTERS = 32 * 2**20
"""Text that is encoded before other processes are started: they take a second, and small corpora need none."""


class Batch(NamedTuple):
    """Neighbours of one split; `first` is the position of the first in the split's stream."""

    split: Split
    first: int
    documents: list[Document]


def encode_checked(front_end: FrontEnd, batch: Batch) -> Encoded:
    """Encode a batch and check each document.

    UserError names the document that does not survive the round trip (where the front end promises it), whose tokens
    are not charged the bytes of its original, or whose tokens hold an id that delimits documents.
    """
    encoded = _encode_named(front_end, batch.documents)
    ends = np.cumsum(encoded.lengths)
    charged = np.diff(np.concatenate([[0], np.cumsum(encoded.token_bytes, dtype=np.int64)])[np.r_[0, ends]])
    recorded = np.array([document.num_bytes for document in batch.documents], np.int64)
    for index in np.flatnonzero((charged != recorded) & (encoded.lengths > 0)):
        raise UserError(
            f"document {batch.documents[index].name!r}: its tokens are charged {charged[index]} bytes but the original "
            f"has {recorded[index]}; bits per byte would be wrong by that ratio."
        )
    for position in np.flatnonzero((encoded.ids == BOS_ID) | (encoded.ids >= front_end.vocab_size)):
        document = batch.documents[int(np.searchsorted(ends, position, "right"))]
        raise UserError(
            f"document {document.name!r} is encoded with the id {encoded.ids[position]}, which no text may have: "
            f"{BOS_ID} begins a document, and the vocabulary ends at {front_end.vocab_size}."
        )
    if front_end.lossless:
        decoded = front_end.decode_documents(encoded.ids, encoded.lengths)
        for document, text in zip(batch.documents, decoded, strict=True):
            if text != document.text:
                raise UserError(
                    f"document {document.name!r} does not survive encoding and decoding by the tokenizer: its tokens "
                    f"decode to {len(text.encode(errors='replace'))} bytes of UTF-8, the original has "
                    f"{document.num_bytes}."
                )
    return encoded


def _encode_named(front_end: FrontEnd, documents: list[Document]) -> Encoded:
    """Encode; UserError names the document that cannot be."""
    try:
        return front_end.encode_documents([document.text for document in documents])
    except UserError:
        for document in documents:
            try:
                front_end.encode_whole(document.text)
            except UserError as error:
                raise UserError(f"document {document.name!r} cannot be encoded: {error}") from error
        raise


def encode_batches(front_end: FrontEnd, batches: Iterable[Batch], workers: int) -> Iterator[tuple[Batch, Encoded]]:
    """The batches in order with what they encode to; the number of workers changes nothing but the speed.

    Other processes start when there turns out to be more than a little text. Encoded.token_bytes is empty for
    training documents. UserError as from `encode_checked`, or when a worker dies.
    """
    batches, characters = iter(batches), 0
    for batch in batches:
        yield batch, _encode(front_end, batch)
        characters += sum(len(document.text) for document in batch.documents)
        if workers > 1 and characters >= INLINE_CHARACTERS:
            break
    if (rest := next(batches, None)) is not None:
        yield from in_processes(_encode, front_end, itertools.chain([rest], batches), workers)


def _encode(front_end: FrontEnd, batch: Batch) -> Encoded:
    encoded = encode_checked(front_end, batch)
    return encoded if batch.split == "val" else encoded._replace(token_bytes=encoded.token_bytes[:0])

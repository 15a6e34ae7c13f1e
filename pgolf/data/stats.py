"""Figures of a prepared directory, for people and programs."""

from pathlib import Path
from typing import Any

import numpy as np

from pgolf.data.dataset import Dataset
from pgolf.data.documents import WORD_MARK
from pgolf.data.manifest import Entry, read_documents
from pgolf.data.shards import read_shard

MOST_FREQUENT = 20


def stats(directory: Path) -> dict[str, Any]:
    """Per split: documents, tokens (BOS included), bytes, bytes per token, lengths, ids in use.

    `length_histogram` lists [smallest, documents]: documents of at least `smallest` tokens and
    fewer than twice that. `most_frequent` lists [id, text, count] of the training split, BOS left
    out.
    """
    dataset = Dataset(directory)
    entries = read_documents(directory)
    result: dict[str, Any] = {
        "name": dataset.manifest["name"],
        "digest": dataset.digest,
        "vocab_size": dataset.vocab_size,
        "skipped": dataset.manifest["skipped"],
        "splits": {},
    }
    for split, totals in dataset.manifest["splits"].items():
        counts = np.zeros(dataset.vocab_size, np.int64)
        for name in totals["files"]:
            counts += np.bincount(read_shard(directory / name), minlength=dataset.vocab_size)
        counts[dataset.bos_id] = 0
        own = [entry for entry in entries if entry.split == split]
        result["splits"][split] = _figures(own, totals) | {
            "ids_used": int((counts > 0).sum()),
            "most_frequent": _most_frequent(counts, dataset),
        }
    return result


def _figures(entries: list[Entry], totals: dict[str, Any]) -> dict[str, Any]:
    lengths = np.array([entry.tokens for entry in entries])
    bins, documents = np.unique(np.floor(np.log2(lengths)).astype(int), return_counts=True)
    sizes = np.array([entry.bytes for entry in entries])
    return {
        "documents": totals["documents"],
        "tokens": totals["tokens"],
        "bytes": totals["bytes"],
        "shards": len(totals["files"]),
        # Without BOS, which stands for no byte.
        "bytes_per_token": float(sizes.sum() / lengths.sum()),
        "document_bytes": {
            "smallest": int(sizes.min()),
            "median": float(np.median(sizes)),
            "largest": int(sizes.max()),
        },
        "length_histogram": [[int(2**low), int(count)] for low, count in zip(bins, documents, strict=True)],
    }


def _most_frequent(counts: np.ndarray, dataset: Dataset) -> list[list[Any]]:
    order = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    pieces = [dataset.tokenizer.piece(int(token)).replace(WORD_MARK, " ") for token in order]
    return [
        [int(token), piece, int(counts[token])] for token, piece in zip(order, pieces, strict=True) if counts[token]
    ]

"""Figures of a prepared directory, for people and programs."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pgolf.data.dataset import Dataset
from pgolf.data.encoding.caseops import NAMES
from pgolf.data.encoding.operators import OperatorTokens
from pgolf.data.manifest import SPLITS
from pgolf.data.shards import histogram, read_shard
from pgolf.data.sources.documents import WORD_MARK
from pgolf.errors import UserError

MOST_FREQUENT = 20


def stats(directory: Path) -> dict[str, Any]:
    """Per split: documents, tokens (BOS included), bytes, bytes per token, lengths, ids in use, operators.

    `length_histogram` lists [smallest, documents]: documents of at least `smallest` tokens and
    fewer than twice that (0: empty ones). `most_frequent` lists [id, text, count], BOS left out. `operator_share` is
    the share of the tokens, BOS left out, that are operators of the text transform or spell one in bytes.
    """
    dataset = Dataset(directory)
    pieces = [dataset.front_end.piece(token) for token in range(dataset.vocab_size)]
    operators = OperatorTokens(dataset.front_end)
    return {
        "name": dataset.manifest["name"],
        "digest": dataset.digest,
        "vocab_size": dataset.vocab_size,
        "front_end": dataset.manifest["front_end"],
        "lossless": dataset.manifest["lossless"],
        "left_out": dataset.manifest["left_out"],
        "splits": {split: _figures(dataset, split, pieces, operators) for split in SPLITS},
    }


def document_lengths(dataset: Dataset, split: str) -> npt.NDArray[np.int64]:
    """int64 [documents]: tokens of each document, without BOS."""
    return np.diff(dataset.index(split).starts) - 1


def _figures(dataset: Dataset, split: str, pieces: list[str], operators: OperatorTokens) -> dict[str, Any]:
    counts = np.zeros(dataset.vocab_size, np.int64)
    for path in dataset.files(split):
        found = histogram(path, dataset.vocab_size)
        if len(found) > dataset.vocab_size:
            raise UserError(
                f"{path} holds ids beyond the vocabulary: `pgolf data verify {dataset.directory}` says more."
            )
        counts += found
    counts[dataset.bos_id] = 0
    totals, lengths = dataset.manifest["splits"][split], document_lengths(dataset, split)
    sizes = np.asarray(dataset.index(split).rows["bytes"])
    # An export may hold empty documents: they have a bin of their own.
    bins, documents = np.unique(np.floor(np.exp2(np.floor(np.log2(lengths + 0.5)))), return_counts=True)
    return {
        "documents": totals["documents"],
        "tokens": totals["tokens"],
        "bytes": totals["bytes"],
        "shards": len(totals["files"]),
        # Without BOS, which stands for no byte.
        "bytes_per_token": float(sizes.sum() / lengths.sum()),
        "document_bytes": _spread(sizes),
        "document_tokens": _spread(lengths),
        "length_histogram": [[int(low), int(count)] for low, count in zip(bins, documents, strict=True)],
        "ids_used": int((counts > 0).sum()),
        "operator_share": operators.count(map(read_shard, dataset.files(split))) / int(counts.sum()),
        "most_frequent": _most_frequent(counts, pieces),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"smallest": int(values.min()), "median": float(np.median(values)), "largest": int(values.max())}


def _most_frequent(counts: npt.NDArray[np.int64], pieces: list[str]) -> list[list[Any]]:
    order = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    return [
        [int(token), NAMES.get(pieces[token], pieces[token].replace(WORD_MARK, " ")), int(counts[token])]
        for token in order
        if counts[token]
    ]


def plot_lengths(directory: Path, path: Path) -> None:
    """A histogram of document lengths, both splits, as a PNG. UserError when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("matplotlib is not installed, so there is no plot; install `pgolf[report]`.") from error
    from pgolf.files import atomic_open

    dataset = Dataset(directory)
    lengths = {split: document_lengths(dataset, split) for split in SPLITS}
    longest = max(int(one.max()) for one in lengths.values())
    edges = 2.0 ** np.arange(0, np.ceil(np.log2(longest + 1)) + 0.5, 0.5)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for split, label in (("train", "training"), ("val", "validation")):
        weights = np.full(len(lengths[split]), 100 / len(lengths[split]))
        axes.hist(
            lengths[split],
            edges.tolist(),
            weights=weights,
            alpha=0.55,
            label=f"{label}: {len(lengths[split]):,} documents, median {np.median(lengths[split]):,.0f} tokens",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(
        max(1.0, 2.0 ** np.floor(np.log2(max(1, min(int(one.min()) for one in lengths.values()))))), edges[-1]
    )
    axes.set_xlabel("tokens of a document, without BOS")
    axes.set_ylabel("share of the split's documents, %")
    axes.set_title(f"{dataset.manifest['name']}: document lengths")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)

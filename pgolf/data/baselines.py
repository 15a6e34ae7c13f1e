"""What simple compressors reach on the same validation text, so that bits per byte mean something."""

import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brotli
import numpy as np

from pgolf.console import Console
from pgolf.data.dataset import Dataset
from pgolf.data.shards import read_shard
from pgolf.files import read_json, write_json


def unigram_bits_per_byte(train_files: Sequence[Path], tokens: np.ndarray, vocab_size: int, num_bytes: int) -> float:
    """Cost of the validation tokens under the add-one token frequencies of the training shards, in bits per byte."""
    counts = np.ones(vocab_size)
    for path in train_files:
        counts += np.bincount(np.asarray(read_shard(path)), minlength=vocab_size)
    bits = -np.log2(counts / counts.sum())
    return float(bits[tokens].sum() / num_bytes)


def compressor_bits_per_byte(validation: bytes, training: bytes) -> dict[str, float]:
    """Bits per byte of brotli quality 11 and xz preset 9 on the validation text alone, and of xz after it has read
    the training text.

    xz_primed = (size of training + validation together) - (size of training): a compressor that may learn from the
    training text too.
    """
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 26}]

    def xz(data: bytes) -> int:
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as pool:  # both release the interpreter while they work
        together, alone = pool.map(xz, (training + validation, training))
    scale = 8.0 / len(validation)
    return {
        "brotli": len(brotli.compress(validation, quality=11, lgwin=24)) * scale,
        "xz": xz(validation) * scale,
        "xz_primed": (together - alone) * scale,
    }


def baselines(dataset: Dataset, console: Console) -> dict[str, float]:
    """All baselines of a data set, in bits per byte; computed once and kept beside the data."""
    path = dataset.directory.with_name(f"{dataset.directory.name}.baselines.json")
    if path.exists():
        kept = read_json(path)
        if kept.get("data_digest") == dataset.digest:
            return kept["bits_per_byte"]
    console.say("compressing the validation text with brotli and xz, for comparison (kept for later runs)")
    validation = dataset.validation()
    text = dataset.validation_text()
    found = {"unigram": unigram_bits_per_byte(dataset.train_files, validation.tokens, dataset.vocab_size, len(text))}
    found |= compressor_bits_per_byte(text, b"".join(dataset.training_text()))
    write_json(path, {"data_digest": dataset.digest, "bits_per_byte": found})
    return found

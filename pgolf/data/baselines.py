"""What simple compressors reach on the same validation text, so that bits per byte mean something."""

import lzma
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brotli
import numpy as np

from pgolf.console import Console
from pgolf.data.dataset import Dataset
from pgolf.data.shards import histogram, shard_length
from pgolf.files import read_json, write_json

VALIDATION_BYTES = 16 * 10**6  # The compressors see so much of the validation text; more takes minutes.
TRAINING_BYTES = 64 * 10**6  # And so much of the training text: more than the window of xz would be forgotten.
UNIGRAM_TOKENS = 10**9  # Token frequencies no longer move after so many tokens.


def unigram_bits_per_byte(train_files: Sequence[Path], tokens: np.ndarray, vocab_size: int, num_bytes: int) -> float:
    """Cost of the validation tokens under the add-one token frequencies of the training shards (of the first
    UNIGRAM_TOKENS tokens or more, in whole shards), in bits per byte."""
    counts, seen = np.ones(vocab_size), 0
    for path in train_files:
        if seen >= UNIGRAM_TOKENS:
            break
        counts += histogram(path, vocab_size)
        seen += shard_length(path)
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
    """All baselines of a data set, in bits per byte; computed once and kept beside the data.

    Of large data the compressors read whole documents from the front (VALIDATION_BYTES, TRAINING_BYTES).
    """
    path = dataset.directory.with_name(f"{dataset.directory.name}.baselines.json")
    if path.exists():
        kept = read_json(path)
        if kept.get("data_digest") == dataset.digest:
            return kept["bits_per_byte"]
    validation = dataset.validation()
    text = _front(dataset.texts("val"), VALIDATION_BYTES)
    whole = dataset.manifest["splits"]["val"]["bytes"]
    part = "the" if len(text) >= whole else f"the first {len(text) / 1e6:.1f} of {whole / 1e6:.1f} MB of"
    console.say(f"compressing {part} validation text with brotli and xz, for comparison (kept for later runs)")
    num_bytes = int(validation.document_bytes.sum())
    found = {"unigram": unigram_bits_per_byte(dataset.train_files, validation.tokens, dataset.vocab_size, num_bytes)}
    found |= compressor_bits_per_byte(text, _front(dataset.texts("train"), TRAINING_BYTES))
    write_json(path, {"data_digest": dataset.digest, "bits_per_byte": found})
    return found


def _front(texts: Iterable[bytes], limit: int) -> bytes:
    """Whole documents from the front until `limit` bytes are reached."""
    kept, size = [], 0
    for text in texts:
        kept.append(text)
        size += len(text)
        if size >= limit:
            break
    return b"".join(kept)

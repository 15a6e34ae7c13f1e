"""Tokens a second of every loader over shards on disk, and how much of a training step waits for its batch.

The wait is measured with the batch drawn inside the step and drawn ahead of it, around a step that only sleeps: what a
GPU does while the CPU is free. Prints one JSON line a loader. Published steps draw 98,304 tokens a micro-batch.
"""

import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from pgolf.data.loaders import (
    BatchShape,
    CoprimeStrideLoader,
    DocumentPackingLoader,
    Loader,
    Prefetch,
    SequentialLoader,
    ShuffledSequenceLoader,
)
from pgolf.data.loaders.batch import MakeLoader
from pgolf.data.shards import write_shard

SHAPE = BatchShape(98_304, 2048, micro_batches=8)
SHARDS, SHARD_TOKENS, DOCUMENT_TOKENS = 4, 10_000_000, 900
BATCHES, STEPS, STEP_SECONDS = 200, 40, 0.02

LOADERS: dict[str, MakeLoader] = {
    "document_packing": DocumentPackingLoader,
    "shuffled_sequence": ShuffledSequenceLoader,
    "sequential": SequentialLoader,
    "coprime_stride": partial(CoprimeStrideLoader, ramp_batches=1800),
}


def write_shards(directory: Path) -> list[Path]:
    """Random tokens in documents of random length."""
    generator = np.random.default_rng(0)
    files = []
    for index in range(SHARDS):
        tokens = generator.integers(4, 8192, SHARD_TOKENS).astype(np.uint16)
        tokens[generator.integers(0, SHARD_TOKENS, SHARD_TOKENS // DOCUMENT_TOKENS)] = 1
        tokens[0] = 1
        files.append(directory / f"train_{index:06d}.bin")
        write_shard(files[-1], tokens)
    return files


def tokens_per_second(loader: Loader) -> float:
    """Speed of the loader alone."""
    loader.next()
    begun = time.perf_counter()
    for _ in range(BATCHES):
        loader.next()
    return BATCHES * SHAPE.micro_batch_tokens / (time.perf_counter() - begun)


def wait_share(loader: Loader) -> float:
    """Part of the time of a loop of sleeping steps that is spent in `loader.next`."""
    loader.next()
    waited, begun = 0.0, time.perf_counter()
    for _ in range(STEPS):
        asked = time.perf_counter()
        loader.next()
        waited += time.perf_counter() - asked
        time.sleep(STEP_SECONDS)
    return waited / (time.perf_counter() - begun)


def main() -> None:
    """Measure every loader."""
    with tempfile.TemporaryDirectory() as name:
        files = write_shards(Path(name))
        for label, make in LOADERS.items():
            inside = wait_share(make(files, 1, 0, SHAPE))
            with Prefetch(make(files, 1, 0, SHAPE), depth=2) as ahead:
                hidden = wait_share(ahead)
            row = {
                "loader": label,
                "tokens_per_second": round(tokens_per_second(make(files, 1, 0, SHAPE))),
                "wait_share_in_step": round(inside, 5),
                "wait_share_prefetched": round(hidden, 5),
                "step_seconds": STEP_SECONDS,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

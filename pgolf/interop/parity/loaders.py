"""Batches and document boundaries: the integers of the published loaders, tolerance 0."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pgolf.data.loaders import (
    Batch,
    BatchShape,
    DocumentPackingLoader,
    Loader,
    SequentialLoader,
    ShuffledSequenceLoader,
)
from pgolf.data.shards import write_shard
from pgolf.interop.parity.case import Case, Comparison, Outcome
from pgolf.kernels.packing import build_cu_seqlens


def sequential(case: Case) -> Outcome:
    """DistributedTokenLoader of the baseline."""
    return _compare_batches(
        case, lambda files, shape: SequentialLoader(files, case.meta["world_size"], case.meta["rank"], shape)
    )


def document_packing(case: Case) -> Outcome:
    """DocumentPackingLoader of #1736, #1855 and their relatives."""
    meta = case.meta
    return _compare_batches(
        case,
        lambda files, shape: DocumentPackingLoader(
            files, meta["world_size"], meta["rank"], shape, bucket=meta["cu_bucket_size"], spans_per_fit="ranks"
        ),
    )


def shuffled_sequence(case: Case) -> Outcome:
    """ShuffledSequenceLoader of #1394 and after, which gives as many whole rows as fit into a micro-batch."""

    def make(files: list[Path], shape: BatchShape) -> Loader:
        rows = shape.micro_batch_tokens // shape.sequence_tokens
        whole = BatchShape(rows * shape.sequence_tokens, shape.sequence_tokens)
        return ShuffledSequenceLoader(files, case.meta["world_size"], case.meta["rank"], whole)

    return _compare_batches(case, make)


def cu_seqlens(case: Case) -> Outcome:
    """Boundaries and longest segment of packed rows."""
    compare = Comparison()
    for index, row in enumerate(case.meta):
        bos = np.array(row["bos_pos"], np.int64)
        got = build_cu_seqlens(bos, row["total_len"], row["max_doc_len"], row["bucket"])
        compare.exact(f"boundaries of row {index}", got, row["cu"])
        longest = int(got.diff().max())
        compare.exact(f"longest segment of row {index}", longest, row["max_seqlen"])
    return compare.outcome()


def _compare_batches(case: Case, make: Callable[[list[Path], BatchShape], Loader]) -> Outcome:
    meta, compare = case.meta, Comparison()
    micro_batch_tokens = meta["global_tokens"] // (meta["world_size"] * meta["grad_accum_steps"])
    with tempfile.TemporaryDirectory() as folder:
        loader = make(write_shards(case, Path(folder)), BatchShape(micro_batch_tokens, meta["train_seq_len"]))
        if isinstance(loader, ShuffledSequenceLoader):
            for index, starts in enumerate(loader.starts):
                compare.exact(f"order of file {index}", starts, case.arrays[f"init_start_inds_file{index}"])
        for index in range(meta["n_batches"]):
            _compare_batch(compare, case, index, loader.next())
    return compare.outcome()


def _compare_batch(compare: Comparison, case: Case, index: int, batch: Batch) -> None:
    compare.exact(f"inputs of batch {index}", batch.inputs, case.arrays[f"b{index}_x"])
    compare.exact(f"targets of batch {index}", batch.targets, case.arrays[f"b{index}_y"])
    if batch.cu_seqlens is not None:
        compare.exact(f"boundaries of batch {index}", batch.cu_seqlens, case.arrays[f"b{index}_cu"])
        longest = int(batch.cu_seqlens.diff().max())
        compare.exact(f"longest segment of batch {index}", longest, case.meta["max_seqlen_per_batch"][index])


def write_shards(case: Case, folder: Path) -> list[Path]:
    """The case's shards as files, in their order."""
    files: list[Path] = []
    while (key := f"shard{len(files)}") in case.arrays:
        files.append(folder / f"train_{len(files):06d}.bin")
        write_shard(files[-1], case.arrays[key])
    return files

"""Both loaders against integers that the published scripts produced."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.data.loaders import (
    DocumentPackingLoader,
    ShuffledSequenceLoader,
    build_cu_seqlens,
)
from pgolf.data.shards import write_shard

CHECKOUT = Path(__file__).parents[2]
COMMITTED = CHECKOUT / "tests" / "golden"
SHARED = CHECKOUT.parent / "shared" / "golden" / "open"


def golden(pattern: str) -> list[Path]:
    """Reference files: the committed subset, and all where shared/ lies beside the checkout."""
    found = {path.name: path for path in COMMITTED.glob(pattern)}
    found |= {path.name: path for path in SHARED.glob(pattern)}
    assert found, f"no reference file {pattern}"
    return [found[name] for name in sorted(found)]


def case(path: Path, directory: Path):
    """(arrays, configuration, shard files) of one reference file."""
    arrays = np.load(path)
    config = json.loads(str(arrays["meta_json"]))
    files: list[Path] = []
    while f"shard{len(files)}" in arrays:
        files.append(directory / f"train_{len(files):06d}.bin")
        write_shard(files[-1], arrays[f"shard{len(files) - 1}"])
    assert len(files) == 3
    return arrays, config, files


def micro_batch(config) -> int:
    return config["global_tokens"] // (config["grad_accum_steps"] * config["world_size"])


@pytest.mark.parametrize("path", golden("loader_docpack_*.npz"), ids=lambda p: p.stem)
def test_document_packing_equals_the_published_batches(path, tmp_path):
    arrays, config, files = case(path, tmp_path)
    loader = DocumentPackingLoader(
        files,
        config["world_size"],
        config["rank"],
        micro_batch_tokens=micro_batch(config),
        max_document_tokens=config["train_seq_len"],
        bucket=config["cu_bucket_size"],
    )
    for index in range(config["n_batches"]):
        batch = loader.next()
        np.testing.assert_array_equal(batch.inputs, arrays[f"b{index}_x"])
        np.testing.assert_array_equal(batch.targets, arrays[f"b{index}_y"])
        np.testing.assert_array_equal(batch.cu_seqlens, arrays[f"b{index}_cu"])
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64


@pytest.mark.parametrize("path", golden("loader_shuffled_*.npz"), ids=lambda p: p.stem)
def test_shuffled_sequences_equal_the_published_batches(path, tmp_path):
    arrays, config, files = case(path, tmp_path)
    loader = ShuffledSequenceLoader(
        files,
        config["world_size"],
        config["rank"],
        micro_batch_tokens=micro_batch(config),
        sequence_tokens=config["train_seq_len"],
    )
    for index, starts in enumerate(loader.starts):
        np.testing.assert_array_equal(starts, arrays[f"init_start_inds_file{index}"])
    for index in range(config["n_batches"]):
        batch = loader.next()
        np.testing.assert_array_equal(batch.inputs, arrays[f"b{index}_x"])
        np.testing.assert_array_equal(batch.targets, arrays[f"b{index}_y"])
        assert batch.cu_seqlens is None


CU_CASES = json.loads(golden("loader_cu_seqlens.json")[0].read_text())


@pytest.mark.parametrize("number", range(len(CU_CASES)))
def test_cu_seqlens_equal_the_published_boundaries(number):
    expected = CU_CASES[number]
    got = build_cu_seqlens(
        np.array(expected["bos_pos"], np.int64),
        expected["total_len"],
        expected["max_doc_len"],
        expected["bucket"],
    )
    assert got.tolist() == expected["cu"]

"""Small models and documents that the tests share."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgolf.data.shards import write_shard
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.model.attention import CausalSelfAttention
from pgolf.model.exclude import own_value
from pgolf.model.gpt import GPT
from pgolf.model.head import SoftCap
from pgolf.model.mlp import LeakyReLUSquared
from pgolf.model.plan import Depth
from pgolf.model.rope import Rotary

ALONE = Group(0, 1, torch.device("cpu"))
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "open"


def tiny_model(
    seed: int = 1,
    vocab_size: int = 64,
    dim: int = 32,
    gate: Any = None,
    exclude_own_value: bool = True,
    num_loops: int = 1,
    num_layers: int = 4,
    scramble: float = 0.0,
    value_residual: Any = None,
    **parts: Any,
) -> GPT:
    """A GPT of four thin layers, with other `parts` of GPT where given; `scramble` adds noise to all of it (output
    projections start at zero)."""
    settings: dict[str, Any] = {
        "dim": dim,
        "qk_gain": 2.0,
        "softcap": partial(SoftCap, cap=30.0),
        "embedding_std": 0.05,
        "layer_scale": True,
        "skip_gates": True,
        "depth": Depth(num_layers=num_layers, loop_start=1, loop_end=2, num_loops=num_loops, skips=True),
        "attention": partial(
            CausalSelfAttention,
            num_heads=4,
            num_kv_heads=2,
            rope=Rotary(dims=4, base=1e4),
            exclude=partial(own_value, last=None) if exclude_own_value else None,
            gate=gate,
            value_residual=value_residual,
        ),
        "mlp": partial(LeakyReLUSquared, multiple=2.0, slope=0.5),
    }
    model = GPT(vocab_size, seed, **{**settings, **parts})
    if scramble:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scramble)
    return model


def documents(lengths: list[int], vocab_size: int = 64, seed: int = 0) -> ValidationSet:
    """Random documents; a document of length n is BOS and n - 1 tokens of one or two bytes each."""
    generator = np.random.default_rng(seed)
    rows = [np.r_[1, generator.integers(4, vocab_size, length - 1)] for length in lengths]
    tokens = np.concatenate(rows).astype(np.uint16)
    token_bytes = np.where(tokens == 1, 0, 1 + tokens % 2).astype(np.int32)
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.int64)
    document_bytes = np.add.reduceat(token_bytes.astype(np.int64), starts)
    return ValidationSet(tokens, token_bytes, starts, document_bytes, [f"document {i}" for i in range(len(lengths))])


class FakeDataset:
    """Training shards of random documents, in the shape the training loop reads."""

    def __init__(self, directory: Path, vocab_size: int = 64, num_shards: int = 2, shard_tokens: int = 6000) -> None:
        generator = np.random.default_rng(7)
        self.train_files = []
        for index in range(num_shards):
            # predictable text: each token is the one before it plus one, with a fresh start per document
            starts = generator.integers(4, vocab_size, shard_tokens // 50)
            rows = [np.r_[1, 4 + (start + np.arange(49)) % (vocab_size - 4)] for start in starts]
            path = directory / f"train_{index:06d}.bin"
            write_shard(path, np.concatenate(rows).astype(np.uint16))
            self.train_files.append(path)


def run_ranks(program: Path, world_size: int, *arguments: Path | str) -> None:
    """Run `program` with `world_size` gloo processes; what it printed is shown when it fails."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.ranks", str(world_size), str(program), *map(str, arguments)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

"""The order in which a loader reads its shards, where that is not the lexicographic one."""

import math
import random
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pgolf.data.shards import read_shard

DRAWS = 64
Item = TypeVar("Item")


class ShardOrder:
    """Shards by name or by how well they compress, then with a stride (public search log of the contest).

    by: `name`; or `entropy`, an entropy curriculum: the compressed part of a shard's first sample_tokens tokens (two
    bytes each) at zlib level 1, lowest first, ties by name. stride_seed: shard i of the order is (i * stride) mod N,
    with a stride coprime to N that this seed draws; None: no stride. A stride after a curriculum undoes it.

    Every process computes the same order. Raises ValueError when sample_tokens is not positive.
    """

    def __init__(self, *, by: Literal["name", "entropy"], stride_seed: int | None, sample_tokens: int) -> None:
        if sample_tokens < 1:
            raise ValueError(f"shard order: sample_tokens={sample_tokens} must be positive")
        self.by, self.stride_seed, self.sample_tokens = by, stride_seed, sample_tokens

    def __call__(self, files: Sequence[Path]) -> list[Path]:
        """`files`, which are in lexicographic order, in this one."""
        ordered = list(files)
        if self.by == "entropy":
            ratios = {path: compressed_part(path, self.sample_tokens) for path in ordered}
            ordered.sort(key=lambda path: ratios[path])
        return ordered if self.stride_seed is None else strided(ordered, coprime_stride(len(ordered), self.stride_seed))


def compressed_part(path: Path, tokens: int) -> float:
    """Compressed size over size of the first tokens of a shard, at zlib level 1; 1 for a shard without tokens."""
    raw = read_shard(path)[:tokens].tobytes()
    return len(zlib.compress(raw, 1)) / len(raw) if raw else 1.0


def coprime_stride(count: int, seed: int) -> int:
    """A number of 1..count-1 without a common divisor with `count`, drawn uniformly up to 64 times; 1 when none is
    found."""
    generator = random.Random(seed)
    draws = (generator.randint(1, count - 1) for _ in range(DRAWS if count > 1 else 0))
    return next((stride for stride in draws if math.gcd(stride, count) == 1), 1)


def strided(items: Sequence[Item], stride: int) -> list[Item]:
    """Items 0, stride, 2 * stride, ... modulo their number; each once when the stride is coprime to it."""
    return [items[index * stride % len(items)] for index in range(len(items))]

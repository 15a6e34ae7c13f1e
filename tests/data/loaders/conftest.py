"""Three small shards of random tokens."""

import numpy as np
import pytest

from .shards import BOS, shard_files


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(3)
    return shard_files(tmp_path, [np.r_[BOS, generator.integers(1, 9, size)] for size in (90, 150, 70)])

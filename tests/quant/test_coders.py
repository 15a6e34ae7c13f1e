"""Coders: lossless, deterministic, refusing damaged bytes; the published byte shuffle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import UserError
from pgolf.quant import coders
from pgolf.quant.coders import CODERS, shuffle_bytes, unshuffle_bytes

BYTE_CODERS = ["rans", "brotli", "zstd", "lzma", "zlib", "none"]


@pytest.mark.parametrize("name", BYTE_CODERS)
@settings(max_examples=30, deadline=None)
@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=20).map(lambda b: b * 50)))
def test_lossless_and_deterministic(name: str, data: bytes) -> None:
    coder = CODERS[name]
    coded = coder.encode(data)
    assert coder.decode(coded, len(data)) == data
    assert coder.encode(data) == coded


@pytest.mark.parametrize("name", BYTE_CODERS[:-1])
def test_damaged_bytes_are_refused(name: str) -> None:
    coded = CODERS[name].encode(bytes(range(256)) * 4)
    for damaged in (coded[: len(coded) // 2], b"\xff" * len(coded), b""):
        with pytest.raises(ValueError, match=name):
            CODERS[name].decode(damaged, 1024)


@pytest.mark.parametrize("name", BYTE_CODERS)
def test_more_or_less_than_promised_is_refused(name: str) -> None:
    coded = CODERS[name].encode(bytes(100_000))
    for size in (0, 99_999, 100_001):
        with pytest.raises(ValueError, match=f"{name}: the bytes are cut off"):
            CODERS[name].decode(coded, size)


@pytest.mark.parametrize("name", BYTE_CODERS[:-1])
def test_overhead_is_what_was_measured(name: str) -> None:
    if CODERS[name].matrices:
        pytest.skip("the coder of matrices is measured as such, in test_rans.py")
    values = np.random.default_rng(0).standard_normal(150_000) * 31 / 12.85
    symbols = np.clip(np.round(values), -31, 31).astype(np.int8)
    chances = np.unique(symbols, return_counts=True)[1] / len(symbols)
    entropy_bytes = -(chances * np.log2(chances)).sum() * len(symbols) / 8
    overhead = CODERS[name].overhead
    assert overhead is not None
    measured = len(CODERS[name].encode(symbols.tobytes())) / entropy_bytes
    assert measured == pytest.approx(overhead, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=100), st.sampled_from([1, 2, 4, 8]))
def test_shuffle_is_undone(data: bytes, stride: int) -> None:
    shuffled = shuffle_bytes(data, stride)
    assert sorted(shuffled) == sorted(data)
    assert unshuffle_bytes(shuffled, stride) == data


def test_a_missing_library_is_named() -> None:
    with pytest.raises(UserError, match="pip install no-such-coder"):
        coders._library("no_such_coder", "no-such-coder")

"""Trellis-coded quantisation: the best of all paths, the gain of the theory, the same codebooks at both ends."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.quant.encoded import Encoded, decode, trellis_codebooks
from pgolf.quant.rans import TRELLIS
from pgolf.quant.trellis import candidates, encode_path, zero_candidates


def test_the_trellis_is_a_good_code() -> None:
    """Every state has two ways in and two out, and paths that part stay apart for three steps."""
    assert sorted(TRELLIS.reshape(-1).tolist()) == sorted([*range(8)] * 2)
    for state in range(8):
        left, right = ({int(TRELLIS[state, 0])}, {int(TRELLIS[state, 1])})
        for _ in range(3):
            assert not left & right
            left, right = ({int(after) for one in side for after in TRELLIS[one]} for side in (left, right))
        assert left & right


@settings(max_examples=60, deadline=None)
@given(st.floats(-200, 200), st.sampled_from([7, 127]))
def test_candidates_are_the_nearest_of_their_branch(value: float, largest: int) -> None:
    symbols, errors = candidates(np.array(value, np.float32), largest)
    for codebook, parity in itertools.product((0, 1), (0, 1)):
        points = [(k, k + codebook / 2 - 0.25) for k in range(-largest, largest + 1) if k % 2 == parity]
        best = min(abs(np.float32(value) - point) for _, point in points)
        branch = 2 * codebook + parity
        assert int(symbols[branch]) in [k for k, _ in points]
        assert abs(errors[branch]) == pytest.approx(best, abs=1e-4)


def levels(codebook: int, parity: int, largest: int) -> dict[float, int]:
    """What the symbols of a branch stand for with a zero in both codebooks: symbol - sign * codebook / 2."""
    symbols = [k for k in range(-largest, largest + 1) if k % 2 == parity]
    return {k - (0.5 * codebook if k > 0 else -0.5 * codebook if k < 0 else 0.0): k for k in symbols}


@settings(max_examples=60, deadline=None)
@given(st.floats(-200, 200), st.sampled_from([7, 127]))
def test_candidates_with_a_zero_are_the_nearest_of_their_branch(value: float, largest: int) -> None:
    symbols, errors = zero_candidates(np.array(value, np.float32), largest)
    for codebook, parity in itertools.product((0, 1), (0, 1)):
        known = levels(codebook, parity, largest)
        branch = 2 * codebook + parity
        (point,) = [one for one, k in known.items() if k == int(symbols[branch])]
        assert np.float32(value) - point == pytest.approx(float(errors[branch]), abs=1e-4)
        assert abs(errors[branch]) == pytest.approx(min(abs(np.float32(value) - one) for one in known), abs=1e-4)


def with_zero(values: np.ndarray, segment: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and what a reader makes of them."""
    symbols, decoded = encode_path(values, np.ones_like(values), segment, zero=True)
    parts = {"symbols": symbols[:, None], "steps": np.zeros(len(values), np.int16)}
    parts |= {"trellis_segment": np.array(segment, np.int32), "trellis_zero": np.array(1, np.uint8)}
    read = decode(Encoded("steps", "", (len(values), 1), parts)).numpy()[:, 0]
    assert np.array_equal(read, decoded)
    return symbols, decoded


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 3, 8]))
def test_the_path_with_a_zero_is_the_best_of_all(seed: int, rows: int, segment: int) -> None:
    values = (np.random.default_rng(seed).standard_normal(rows) * 2).astype(np.float32)
    _, decoded = with_zero(values, segment)
    best = 0.0
    for start in range(0, rows, segment):
        part, costs = values[start : start + segment], []
        for parities in itertools.product((0, 1), repeat=len(part)):
            state, cost = 0, 0.0
            for value, parity in zip(part, parities, strict=True):
                cost += min((value - point) ** 2 for point in levels(state & 1, parity, 21))
                state = int(TRELLIS[state, parity])
            costs.append(cost)
        best += min(costs)
    assert float(((values - decoded) ** 2).sum()) == pytest.approx(best, abs=1e-4)


def test_values_far_below_a_step_are_no_worse_than_lost_with_a_zero() -> None:
    values = np.random.default_rng(0).standard_normal(1 << 13).astype(np.float32) * 0.1
    power = float(np.mean(values**2))
    _, without = encode_path(values, np.ones_like(values), 128)
    _, found = with_zero(values, 128)
    assert float(np.mean((values - found) ** 2)) <= power
    assert float(np.mean((values - without) ** 2)) > 3 * power  # a quarter of a step instead of nothing


def brute_force(values: np.ndarray, weights: np.ndarray, segment: int) -> float:
    """The least weighted error over all paths of parities, with the nearest symbol at each step."""
    total = 0.0
    for start in range(0, len(values), segment):
        part, costs = values[start : start + segment], []
        for parities in itertools.product((0, 1), repeat=len(part)):
            state, cost = 0, 0.0
            for value, weight, parity in zip(part, weights[start:], parities, strict=False):
                offset = (state & 1) / 2 - 0.25
                symbol = 2 * round((value - offset - parity) / 2) + parity
                cost += weight * (value - offset - symbol) ** 2
                state = TRELLIS[state, parity]
            costs.append(cost)
        total += min(costs)
    return total


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 14), st.sampled_from([1, 3, 8]))
def test_the_path_is_the_best_of_all(seed: int, rows: int, segment: int) -> None:
    generator = np.random.default_rng(seed)
    values = (generator.standard_normal(rows) * 4).astype(np.float32)
    weights = generator.random(rows).astype(np.float32)
    symbols, decoded = encode_path(values, weights, segment)
    codebooks = trellis_codebooks(symbols[:, None], segment)[:, 0]
    assert np.allclose(decoded, symbols + codebooks / 2 - 0.25)
    assert float((weights * (values - decoded) ** 2).sum()) == pytest.approx(
        brute_force(values, weights, segment), abs=1e-4
    )


def conditional_entropy(symbols: np.ndarray, codebooks: np.ndarray) -> float:
    total = 0.0
    for codebook in (0, 1):
        counts = np.unique(symbols[codebooks == codebook], return_counts=True)[1]
        total -= float((counts * np.log2(counts / counts.sum())).sum())
    return total / len(symbols)


def test_the_gain_is_that_of_the_theory() -> None:
    """Eight states: 0.18 bit a weight at 3.3 bits, a little less for paths of 128 rows."""
    values = np.random.default_rng(0).standard_normal(1 << 15).astype(np.float32) * 2.4
    rounded = np.round(values)
    counts = np.unique(rounded, return_counts=True)[1]
    scalar = -float((counts * np.log2(counts / len(values))).sum()) / len(values)
    scalar += 0.5 * math.log2(float(np.mean((values - rounded) ** 2)))
    symbols, decoded = encode_path(values, np.ones_like(values), 128)
    codebooks = trellis_codebooks(symbols[:, None], 128)[:, 0]
    coded = conditional_entropy(symbols, codebooks) + 0.5 * math.log2(float(np.mean((values - decoded) ** 2)))
    assert scalar - coded == pytest.approx(0.175, abs=0.012)

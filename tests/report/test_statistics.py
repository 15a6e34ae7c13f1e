"""Statistics against scipy, against numbers worked by hand, and as properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pgolf.report import statistics

BASE = [1.0670, 1.0655, 1.0661, 1.0649]
CANDIDATE = [1.0612, 1.0631, 1.0604]
VALUES = st.floats(0.5, 5.0, allow_nan=False)


def test_summary_by_hand():
    sample = statistics.summarise([1.0, 2.0, 3.0])
    assert (sample.n, sample.mean, sample.std) == (3, 2.0, 1.0)
    assert sample.standard_error == pytest.approx(1 / math.sqrt(3))
    # t(0.975, 2 degrees) = 4.302653
    assert sample.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert sample.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_one_value_has_no_spread_and_no_interval():
    sample = statistics.summarise([1.06])
    assert (sample.n, sample.mean) == (1, 1.06)
    assert sample.std is sample.standard_error is sample.low is sample.high is None


def test_published_means_and_spreads_are_sample_figures():
    # PR 1736, seeds 0, 42 and 1234: 1.06549 with sample deviation 0.00070
    sample = statistics.summarise([1.06473, 1.06610, 1.06563])
    assert sample.mean == pytest.approx(1.06549, abs=1e-5)
    assert sample.std == pytest.approx(0.00070, abs=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.002, -0.001])
def test_welch_is_scipys(margin):
    mine = statistics.welch(BASE, CANDIDATE, margin)
    shifted = [value - margin for value in BASE]
    theirs = stats.ttest_ind(shifted, CANDIDATE, equal_var=False, alternative="greater")
    assert mine.t == pytest.approx(theirs.statistic, rel=1e-9)
    assert mine.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert mine.degrees == pytest.approx(theirs.df, rel=1e-9)
    two_sided = stats.ttest_ind(BASE, CANDIDATE, equal_var=False).confidence_interval(0.95)
    assert (mine.low, mine.high) == pytest.approx((two_sided.low, two_sided.high), rel=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.003])
def test_paired_is_scipys_over_shared_seeds_only(margin):
    base = {0: 1.0670, 42: 1.0655, 7: 1.0661, 99: 5.0}
    candidate = {42: 1.0601, 7: 1.0624, 0: 1.0612, 1234: 9.0}
    mine = statistics.paired(base, candidate, margin)
    gains = [base[seed] - candidate[seed] for seed in (0, 7, 42)]
    theirs = stats.ttest_1samp(gains, margin, alternative="greater")
    assert mine.n == 3
    assert (mine.t, mine.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


def test_one_seed_gives_no_p_and_says_so():
    result = statistics.welch([1.07], [1.06, 1.05])
    assert result.gain == pytest.approx(0.015)
    assert result.p is result.low is result.high is None
    assert "one seed" in result.reason
    result = statistics.paired({1: 1.0, 2: 1.1}, {2: 1.05, 3: 1.0})
    assert result.p is None and result.n == 1 and result.gain == pytest.approx(0.05)
    assert math.isnan(statistics.paired({1: 1.0}, {2: 1.0}).gain)


def test_copies_of_one_run_prove_nothing():
    result = statistics.welch([1.07, 1.07, 1.07], [1.06, 1.06, 1.06])
    assert result.p is None and "no spread" in result.reason


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        statistics.welch([1.0, math.nan], [1.0, 1.1])
    with pytest.raises(ValueError, match="finite"):
        statistics.summarise([])


@given(st.lists(VALUES, min_size=2, max_size=6), st.lists(VALUES, min_size=2, max_size=6))
def test_swapping_the_sides_negates_the_gain(base, candidate):
    forward, backward = statistics.welch(base, candidate), statistics.welch(candidate, base)
    assert forward.gain == pytest.approx(-backward.gain)
    if forward.p is not None and backward.p is not None:
        assert forward.p + backward.p == pytest.approx(1.0)
        assert forward.low == pytest.approx(-backward.high)
        harder = statistics.welch(base, candidate, margin=0.005)
        assert harder.p >= forward.p


@given(VALUES, st.integers(1, 10**8), st.integers(1, 10**9))
def test_units_round_trip(loss, tokens, num_bytes):
    bpb = statistics.bits_per_byte(loss, tokens, num_bytes)
    assert statistics.nats_per_token(bpb, tokens, num_bytes) == pytest.approx(loss)


def test_the_margin_in_bits_per_byte_at_the_caseops_ratio():
    # 2.3194 nats per token are 1.0599 bits per byte there, so 0.005 nats are 0.00228
    bytes_per_token = 2.3194 / math.log(2) / 1.0599
    margin = statistics.bits_per_byte(0.005, 10**6, round(bytes_per_token * 10**6))
    assert margin == pytest.approx(0.00228, abs=1e-5)


def test_detectable_effect_has_the_promised_power():
    effect = statistics.minimum_detectable_effect(1.0, 5, 1.0, 5, alpha=0.05, power=0.8)
    generator = np.random.default_rng(1)
    base = generator.normal(effect, 1.0, (20_000, 5))
    candidate = generator.normal(0.0, 1.0, (20_000, 5))
    found = stats.ttest_ind(base, candidate, axis=1, equal_var=False, alternative="greater")
    assert np.mean(found.pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


@given(
    st.floats(1e-5, 0.1),
    st.floats(1e-5, 0.1),
    st.integers(2, 30),
    st.sampled_from([0.25, 0.05, 0.01]),
)
def test_more_seeds_detect_no_larger_effects(std_base, std_candidate, n, alpha):
    few = statistics.minimum_detectable_effect(std_base, n, std_candidate, n, alpha)
    more = statistics.minimum_detectable_effect(std_base, n + 1, std_candidate, n + 1, alpha)
    assert 0 < more <= few * (1 + 1e-9)


def test_seeds_needed_is_the_smallest_number():
    needed = statistics.seeds_needed(0.001, 0.0008, 0.0015)
    at = statistics.minimum_detectable_effect(0.001, needed, 0.0008, needed)
    under = statistics.minimum_detectable_effect(0.001, needed - 1, 0.0008, needed - 1)
    assert at <= 0.0015 < under
    assert statistics.seeds_needed(0.001, 0.001, -0.1) is None
    assert statistics.seeds_needed(1.0, 1.0, 1e-6) is None
    assert statistics.minimum_detectable_effect(0.0, 3, 0.0, 3) is None
    assert statistics.minimum_detectable_effect(1.0, 1, 1.0, 3) is None


def test_bootstrap_statistic_by_hand():
    base, candidate = np.array([10.0, 20.0]), np.array([9.0, 18.0])
    result = statistics.bootstrap_documents(base, candidate, np.array([4, 6]), 200)
    assert result.gain == pytest.approx(3.0 / 10 / math.log(2))
    # every resample is one of three: (first, first), (mixed), (second, second)
    possible = np.array([2.0 / 8, 3.0 / 10, 4.0 / 12]) / math.log(2)
    assert min(abs(possible - result.low)) < 1e-12
    assert min(abs(possible - result.high)) < 1e-12
    assert result.share_better == 1.0


def test_bootstrap_is_deterministic_and_covers_the_spread():
    generator = np.random.default_rng(3)
    num_bytes = generator.integers(100, 5000, 400)
    base = num_bytes * generator.normal(0.8, 0.1, 400)
    candidate = base - num_bytes * generator.normal(0.01, 0.05, 400)
    one = statistics.bootstrap_documents(base, candidate, num_bytes, 1000)
    assert one == statistics.bootstrap_documents(base, candidate, num_bytes, 1000)
    assert one.low < one.gain < one.high
    # the ratio estimator's standard error, by the usual linearisation
    gain = (base - candidate) / math.log(2)
    residual = gain - one.gain * num_bytes
    error = math.sqrt(len(gain)) * np.std(residual) / num_bytes.sum()
    assert one.high - one.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(
    "arrays",
    [
        (np.ones(3), np.ones(3), np.ones(2)),
        (np.ones(1), np.ones(1), np.ones(1)),
        (np.ones(3), np.ones(3), np.zeros(3)),
        (np.ones(3), np.ones(3), np.array([5, -1, 5])),
    ],
)
def test_bootstrap_refuses_what_it_cannot_resample(arrays):
    with pytest.raises(ValueError):
        statistics.bootstrap_documents(*arrays)

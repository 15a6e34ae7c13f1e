"""Is a difference real? Pure functions over seeds and over documents.

One sign everywhere: gain = base - candidate, in the unit of the values given (nats per token or
bits per byte), so a positive gain means that the candidate is better.
"""

import importlib
import math
import types
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pgolf.errors import UserError

MARGIN_NATS = 0.005


def _scipy_stats() -> types.ModuleType:
    try:
        stats = importlib.import_module("scipy.stats")
    except ImportError as error:
        raise UserError("statistics need scipy, which is not installed: pip install 'pgolf[report]'") from error
    return stats


@dataclass(frozen=True)
class Sample:
    """Mean of n values; with one value there is no spread and no interval (None)."""

    n: int
    mean: float
    std: float | None
    standard_error: float | None
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True)
class TestResult:
    """A one-sided t test of `gain > margin` and the two-sided interval of the gain.

    `p` is the probability of a gain at least this large if the true gain were `margin`. Where no
    test is possible, p and the interval are None and `reason` says why.
    """

    __test__ = False  # pytest would take the name for a test class

    method: str
    gain: float
    margin: float
    n: int
    t: float | None = None
    degrees: float | None = None
    p: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Bootstrap:
    """Percentile interval of the gain in bits per byte over resampled documents."""

    gain: float
    low: float
    high: float
    share_better: float
    documents: int
    replicates: int
    confidence: float


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """Nats per token to bits per byte on a text of `tokens` tokens and `num_bytes` bytes."""
    return nats_per_token / math.log(2) * tokens / num_bytes


def nats_per_token(bpb: float, tokens: int, num_bytes: int) -> float:
    """Bits per byte to nats per token on a text of `tokens` tokens and `num_bytes` bytes."""
    return bpb * math.log(2) * num_bytes / tokens


def summarise(values: Sequence[float], confidence: float = 0.95) -> Sample:
    """Mean, sample standard deviation (n - 1), standard error and t interval of some values."""
    _require_finite(values, "values")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Sample(1, mean, None, None, None, None, confidence)
    std = float(np.std(values, ddof=1))
    error = std / math.sqrt(n)
    half = float(_scipy_stats().t.ppf((1 + confidence) / 2, n - 1)) * error
    return Sample(n, mean, std, error, mean - half, mean + half, confidence)


def welch(
    base: Sequence[float],
    candidate: Sequence[float],
    margin: float = 0.0,
    confidence: float = 0.95,
) -> TestResult:
    """Welch's test (unequal variances) that the mean gain exceeds `margin`."""
    _require_finite(base, "base")
    _require_finite(candidate, "candidate")
    gain = float(np.mean(base) - np.mean(candidate))
    n = min(len(base), len(candidate))
    if n < 2:
        reason = "one seed on a side: no test, no interval; run at least two seeds of each"
        return TestResult("welch", gain, margin, n, reason=reason)
    error, degrees = _welch_error(
        float(np.std(base, ddof=1)), len(base), float(np.std(candidate, ddof=1)), len(candidate)
    )
    return _t_test("welch", gain, margin, n, error, degrees, confidence)


def paired(
    base: dict[int, float],
    candidate: dict[int, float],
    margin: float = 0.0,
    confidence: float = 0.95,
) -> TestResult:
    """Paired t test over the seeds that both sides ran; values are keyed by seed."""
    shared = sorted(base.keys() & candidate.keys())
    if len(shared) < 2:
        gain = base[shared[0]] - candidate[shared[0]] if shared else math.nan
        reason = f"{len(shared)} shared seed(s): a paired test needs two or more"
        return TestResult("paired", gain, margin, len(shared), reason=reason)
    gains = [base[seed] - candidate[seed] for seed in shared]
    _require_finite(gains, "gains")
    n, mean = len(gains), float(np.mean(gains))
    error = float(np.std(gains, ddof=1)) / math.sqrt(n)
    return _t_test("paired", mean, margin, n, error, n - 1, confidence)


def _t_test(
    method: str,
    gain: float,
    margin: float,
    n: int,
    error: float,
    degrees: float,
    confidence: float,
) -> TestResult:
    if error <= 1e-12 * max(abs(gain), 1e-300):
        reason = "the seeds show no spread at all, so nothing can be said about noise"
        return TestResult(method, gain, margin, n, reason=reason)
    stats = _scipy_stats()
    t = (gain - margin) / error
    half = float(stats.t.ppf((1 + confidence) / 2, degrees)) * error
    p = float(stats.t.sf(t, degrees))
    return TestResult(method, gain, margin, n, t, degrees, p, gain - half, gain + half)


def _welch_error(std_base: float, n_base: int, std_candidate: float, n_candidate: int) -> tuple[float, float]:
    """Standard error of the difference and the Welch-Satterthwaite degrees of freedom."""
    a, b = std_base**2 / n_base, std_candidate**2 / n_candidate
    total = a + b
    if total == 0.0:
        return 0.0, float(n_base + n_candidate - 2)
    share_a, share_b = a / total, b / total
    degrees = 1.0 / (share_a**2 / (n_base - 1) + share_b**2 / (n_candidate - 1))
    return math.sqrt(total), degrees


def minimum_detectable_effect(
    std_base: float,
    n_base: int,
    std_candidate: float,
    n_candidate: int,
    alpha: float = 0.01,
    power: float = 0.8,
) -> float | None:
    """Smallest true gain above the margin that this many seeds would show with this power.

    One-sided Welch test at level `alpha`; exact through the noncentral t distribution. None when
    a side has fewer than two seeds or there is no spread.
    """
    if min(n_base, n_candidate) < 2 or std_base**2 + std_candidate**2 == 0.0:
        return None
    error, degrees = _welch_error(std_base, n_base, std_candidate, n_candidate)
    stats = _scipy_stats()
    critical = float(stats.t.isf(alpha, degrees))

    def achieved(shift: float) -> float:
        return float(stats.nct.sf(critical, degrees, shift))

    low, high = 0.0, critical + 1.0
    while achieved(high) < power:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if achieved(middle) < power else (low, middle)
    return high * error


def seeds_needed(
    std_base: float,
    std_candidate: float,
    effect: float,
    alpha: float = 0.01,
    power: float = 0.8,
    limit: int = 1000,
) -> int | None:
    """Seeds per side for which `effect` is detectable; None when more than `limit` (or never)."""
    if effect <= 0.0:
        return None

    def enough(n: int) -> bool:
        found = minimum_detectable_effect(std_base, n, std_candidate, n, alpha, power)
        return found is not None and found <= effect

    if not enough(limit):
        return None
    low, high = 1, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def bootstrap_documents(
    base_nats: np.ndarray,
    candidate_nats: np.ndarray,
    num_bytes: np.ndarray,
    replicates: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Paired bootstrap over documents: both sides are resampled by the same documents.

    base_nats, candidate_nats: float64 [d], summed nats of each document; num_bytes: int64 [d].
    Statistic: (sum base - sum candidate) / sum bytes / ln 2. It speaks about other documents of
    the same kind, not about other seeds. Raises ValueError on unequal lengths or no bytes.
    """
    if not base_nats.shape == candidate_nats.shape == num_bytes.shape or base_nats.ndim != 1:
        raise ValueError("the three arrays must be one-dimensional and of one length")
    if len(num_bytes) < 2 or num_bytes.min() < 0 or num_bytes.sum() <= 0:
        raise ValueError("a bootstrap needs two or more documents and some bytes")
    gain = (base_nats - candidate_nats) / math.log(2)
    weight = num_bytes.astype(np.float64)
    generator = np.random.default_rng(seed)
    drawn = np.empty(replicates)
    done = 0
    while done < replicates:
        picked = generator.integers(0, len(gain), len(gain))
        total = weight[picked].sum()
        if total > 0:
            drawn[done] = gain[picked].sum() / total
            done += 1
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Bootstrap(
        float(gain.sum() / weight.sum()),
        float(low),
        float(high),
        float(np.mean(drawn > 0)),
        len(gain),
        replicates,
        confidence,
    )


def _require_finite(values: Sequence[float], what: str) -> None:
    if len(values) == 0 or not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise ValueError(f"{what} must be one or more finite numbers, not {list(values)}")

"""Comparing groups of runs: every number behind `pgolf compare`, without any printing."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pgolf.errors import UserError
from pgolf.report import statistics
from pgolf.report.comparability import NOTHING, Allowed, check
from pgolf.report.configuration import difference
from pgolf.report.matched import Matched, matched
from pgolf.report.runs import Documents, Run

README_ALPHA = 0.01
AS_APPLIED_ALPHA = 0.25
CAUTIOUS_NATS = 0.002  # below this a screen calls a difference null


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone. Runs that repeat a seed are averaged into one value."""

    digest: str
    label: str
    runs: list[Run]

    @property
    def bpb(self) -> dict[int, float]:
        """Bits per byte by seed."""
        seeds = sorted({run.seed for run in self.runs})
        return {seed: float(np.mean([run.val_bpb for run in self.runs if run.seed == seed])) for seed in seeds}

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes that one scored token stands for."""
        return sum(run.num_bytes for run in self.runs) / sum(run.tokens for run in self.runs)

    def nats(self, bytes_per_token: float) -> dict[int, float]:
        """Nats per token by seed at a given number of bytes per token."""
        scale = math.log(2) * bytes_per_token
        return {seed: value * scale for seed, value in self.bpb.items()}


@dataclass(frozen=True)
class Comparison:
    """One candidate against the base. Tests are in nats per token, intervals in both units."""

    candidate: Group
    gain_bpb: float
    gain_nats: float
    bytes_per_token: float
    any_gain: statistics.TestResult
    margin_gain: statistics.TestResult
    paired: statistics.TestResult
    paired_margin: statistics.TestResult
    documents: statistics.Bootstrap | None
    documents_reason: str | None
    detectable_nats: float | None
    more_seeds: dict[str, str]
    verdicts: dict[str, str]
    bucket: str
    matched: list[Matched]
    config: dict[str, list[str]]
    warnings: list[str] = field(default_factory=list)


def make_groups(grouped: dict[str, list[Run]]) -> list[Group]:
    """Groups with labels that are distinct: the name, with the digest where names repeat."""
    names = {digest: runs[0].name for digest, runs in grouped.items()}
    taken = list(names.values())
    return [
        Group(digest, name if taken.count(name) == 1 else f"{name}@{digest[:8]}", grouped[digest])
        for digest, name in names.items()
    ]


def compare_groups(
    base: Group,
    candidate: Group,
    margin: float = statistics.MARGIN_NATS,
    allowed: Allowed = NOTHING,
    replicates: int = 5000,
    cautious: float = CAUTIOUS_NATS,
) -> Comparison:
    """Every statistic of candidate against base; UserError when they scored different data or ran different code."""
    warnings = check(base, candidate, allowed)
    ratio = base.bytes_per_token
    if not math.isclose(ratio, candidate.bytes_per_token, rel_tol=1e-9):
        warnings.append(
            f"bytes per token differ ({ratio:.6f} and {candidate.bytes_per_token:.6f}): nats per "
            "token are converted from bits per byte at the ratio of the base."
        )
    left, right = base.nats(ratio), candidate.nats(ratio)
    values = list(left.values()), list(right.values())
    any_gain = statistics.welch(*values)
    margin_gain = statistics.welch(*values, margin=margin)
    documents, reason = _documents(base, candidate, replicates)
    return Comparison(
        candidate=candidate,
        gain_bpb=any_gain.gain / math.log(2) / ratio,
        gain_nats=any_gain.gain,
        bytes_per_token=ratio,
        any_gain=any_gain,
        margin_gain=margin_gain,
        paired=statistics.paired(left, right),
        paired_margin=statistics.paired(left, right, margin=margin),
        documents=documents,
        documents_reason=reason,
        detectable_nats=_detectable(*values),
        more_seeds=_more_seeds(*values, any_gain.gain, margin),
        verdicts=verdicts(any_gain, margin_gain),
        bucket=bucket(left, right, margin, cautious),
        matched=matched(base, candidate),
        config=difference([base.runs[0].config, candidate.runs[0].config]),
        warnings=warnings,
    )


def verdicts(any_gain: statistics.TestResult, margin_gain: statistics.TestResult) -> dict[str, str]:
    """The two named policies: `readme` (margin, p < 0.01) and `as_applied` (any gain, p < 0.25)."""
    return {
        "readme": _verdict(margin_gain.p, README_ALPHA),
        "as_applied": _verdict(any_gain.p, AS_APPLIED_ALPHA),
    }


def bucket(base: dict[int, float], candidate: dict[int, float], promote: float, cautious: float) -> str:
    """The bucket of a screen: nats per token by seed against two thresholds that were fixed before the runs.

    `promote` at a mean gain of at least `promote` over the shared seeds (over all seeds when none is shared),
    `cautious` at `cautious` or more, `regression` at a loss of `cautious` or more, else `null`. A screen says what
    to run next, not what is true: one seed is enough for it and three confirm.
    """
    shared = sorted(base.keys() & candidate.keys())
    gain = (
        float(np.mean([base[seed] - candidate[seed] for seed in shared]))
        if shared
        else float(np.mean(list(base.values())) - np.mean(list(candidate.values())))
    )
    if gain >= promote:
        return "promote"
    if gain >= cautious:
        return "cautious"
    return "regression" if gain <= -cautious else "null"


def _verdict(p: float | None, alpha: float) -> str:
    if p is None:
        return "undecided"
    return "pass" if p < alpha else "fail"


def _documents(base: Group, candidate: Group, replicates: int) -> tuple[statistics.Bootstrap | None, str | None]:
    """Document bootstrap of seed-averaged nats, or the reason why there is none."""
    try:
        sides = [[run.documents() for run in group.runs] for group in (base, candidate)]
    except UserError as error:
        return None, str(error)
    first = sides[0][0]
    for side in sides:
        for one in side:
            if not np.array_equal(one.document, first.document):
                return None, "the runs did not score the same documents"
            if not np.array_equal(one.num_bytes, first.num_bytes):
                return None, "the runs count different bytes for the same documents"
    left, right = _mean_nats(base, sides[0]), _mean_nats(candidate, sides[1])
    try:
        return statistics.bootstrap_documents(left, right, first.num_bytes, replicates), None
    except ValueError as error:
        return None, str(error)


def _mean_nats(group: Group, side: list[Documents]) -> np.ndarray:
    """Final nats of every document, averaged over seeds (over the runs of a seed first)."""
    by_seed: dict[int, list[np.ndarray]] = {}
    for run, documents in zip(group.runs, side, strict=True):
        by_seed.setdefault(run.seed, []).append(documents.nats["final"])
    seeds = np.stack([np.stack(repeats).mean(axis=0) for repeats in by_seed.values()])
    return np.asarray(seeds.mean(axis=0))


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _detectable(base: list[float], candidate: list[float]) -> float | None:
    left, right = _spread(base), _spread(candidate)
    if left is None or right is None:
        return None
    return statistics.minimum_detectable_effect(left, len(base), right, len(candidate))


def _more_seeds(base: list[float], candidate: list[float], gain: float, margin: float) -> dict[str, str]:
    """For both policies: how many more seeds the observed gain would need at 80 % power."""
    left, right = _spread(base), _spread(candidate)
    have = min(len(base), len(candidate))
    if left is None or right is None or left**2 + right**2 == 0.0:
        text = "unknown: two or more seeds a side are needed to see the spread"
        return {"readme": text, "as_applied": text}
    answers = {}
    for policy, effect, alpha in (
        ("readme", gain - margin, README_ALPHA),
        ("as_applied", gain, AS_APPLIED_ALPHA),
    ):
        needed = statistics.seeds_needed(left, right, effect, alpha)
        if effect <= 0:
            answers[policy] = "no number of seeds: the observed gain is not above the bar"
        elif needed is None:
            answers[policy] = "more than 1000 per side"
        else:
            answers[policy] = f"{max(0, needed - have)} more per side ({needed} in all)"
    return answers


def as_json(base: Group, comparisons: list[Comparison]) -> dict[str, Any]:
    """The whole comparison as plain values."""
    return {
        "base": _group_json(base, base.bytes_per_token),
        "candidates": [
            {
                **_group_json(one.candidate, one.bytes_per_token),
                "gain_bpb": one.gain_bpb,
                "gain_nats": one.gain_nats,
                "any_gain": _test_json(one.any_gain),
                "margin_gain": _test_json(one.margin_gain),
                "paired": _test_json(one.paired),
                "paired_margin": _test_json(one.paired_margin),
                "documents": vars(one.documents) if one.documents else None,
                "documents_reason": one.documents_reason,
                "detectable_nats": one.detectable_nats,
                "more_seeds": one.more_seeds,
                "verdicts": one.verdicts,
                "bucket": one.bucket,
                "matched": [{**vars(point), "gain": point.gain} for point in one.matched],
                "config_difference": one.config,
                "warnings": one.warnings,
            }
            for one in comparisons
        ],
    }


def _test_json(test: statistics.TestResult) -> dict[str, Any]:
    """The fields of a test; a gain that does not exist is null, since JSON has no NaN."""
    return {**vars(test), "gain": None if math.isnan(test.gain) else test.gain}


def _group_json(group: Group, bytes_per_token: float) -> dict[str, Any]:
    return {
        "label": group.label,
        "group": group.digest,
        "directories": [str(run.directory) for run in group.runs],
        "seeds": sorted(group.bpb),
        "val_bpb": vars(statistics.summarise(list(group.bpb.values()))),
        "nats_per_token": vars(statistics.summarise(list(group.nats(bytes_per_token).values()))),
    }

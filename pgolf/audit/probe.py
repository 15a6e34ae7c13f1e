"""The dynamic check of the four validity conditions on any strategy: run it, change what it must not see, run it again.

C1 strict causal dependence, C2 full normalised distribution, C3 score before update, C4 a single left-to-right pass
(the conditions of the parameter-golf field guide, issue 1017), and the byte denominator.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.checks import Check, Verdict
from pgolf.audit.recorder import Recorder, fingerprint
from pgolf.console import Silent
from pgolf.data.validation import ValidationSet
from pgolf.distributed import Group
from pgolf.model.gpt import GPT
from pgolf.score.ledger import Ledger, RuleBroken
from pgolf.score.scorer import Scorer
from pgolf.ttt.strategy import Bench, Strategy

# Ids below this are control tokens (pad, bos, eos, unk): flips leave them alone, so that document boundaries stay
# where they are.
FIRST_ORDINARY_TOKEN = 4
NORMALISATION_LIMIT = 1e-5
# A procedure that moves by more than this when it is merely repeated cannot be probed by changing its input.
REPEATABILITY_LIMIT = 1e-4


@dataclass
class Trace:
    """What one run of the strategy did."""

    vectors: dict[int, Tensor]
    ledger: Ledger
    first_state: str | None
    moved: list[int]


class Audit:
    """Probes a strategy on the first `max_tokens` tokens of `documents` validation documents, with `flips` changed
    positions.

    Works on any strategy and any model, on CPU, in seconds: it tests the procedure, not the score.
    """

    def __init__(self, *, documents: int, max_tokens: int, flips: int) -> None:
        if documents < 1 or max_tokens < 4 or flips < 1:
            raise ValueError("audit.documents and audit.flips must be at least 1, audit.max_tokens at least 4")
        self.documents, self.max_tokens, self.flips = documents, max_tokens, flips

    def scope(self, strategy: Strategy) -> tuple[Strategy, str]:
        """The strategy as it is probed, and a sentence that says on what.

        A strategy may have a method miniature(documents) -> (strategy, what was made smaller), so that all its
        mechanisms act within the sample; one without is probed as it is.
        """
        sample = f"{self.documents} documents of at most {self.max_tokens} tokens"
        shrink = getattr(strategy, "miniature", None)
        if shrink is None:
            return strategy, sample
        small, what = shrink(self.documents)
        return small, f"{sample}; {what}"

    def run(self, model: GPT, strategy: Strategy, validation: ValidationSet, bench: Bench) -> list[Check]:
        """All checks of `strategy` starting from `model` as it was loaded from the artifact (left unchanged)."""
        sample = validation.head(self.documents, self.max_tokens)
        strategy, _ = self.scope(strategy)
        device = model.tok_emb.weight.device
        group = Group(0, 1, device)
        bench = replace(bench, console=Silent(), log=lambda event: None)

        def trace(tokens: np.ndarray) -> Trace:
            return _trace(model, strategy, replace(sample, tokens=tokens), group, bench)

        try:
            first = trace(sample.tokens)
            null = max(_largest_difference(first, trace(sample.tokens), list(first.vectors)) for _ in range(2))
            causality = [
                self._flip(
                    "C1a", "a target does not move its own prediction", first, null, sample, trace, suffix=False
                ),
                self._flip("C1b", "later tokens move no earlier prediction", first, null, sample, trace, suffix=True),
            ]
        except RuleBroken as broken:
            return [Check(broken.condition, "the scorer stopped the strategy", "fail", 0, float("inf"), str(broken))]
        return [
            *causality,
            _normalisation(first),
            _realised(first, sample),
            _state(first, fingerprint(model)),
            _coverage(first),
            _denominator(validation),
        ]

    def _flip(
        self,
        check: str,
        name: str,
        first: Trace,
        null: float,
        sample: ValidationSet,
        trace: Callable[[np.ndarray], Trace],
        suffix: bool,
    ) -> Check:
        """Change token t (or everything from t to its document's end) and compare all predictions made no later than
        t's own."""
        generator = np.random.default_rng(20240520 + suffix)
        ends = np.append(sample.document_starts[1:], len(sample.tokens))
        scored = np.isin(np.arange(len(sample.tokens)), list(first.vectors))
        ordinary = np.flatnonzero((sample.tokens >= FIRST_ORDINARY_TOKEN) & scored)
        chosen = np.sort(generator.choice(ordinary, size=min(self.flips, len(ordinary)), replace=False))
        if len(chosen) == 0:
            return Check(check, name, "skip", 0, 0.0, "the sample has no ordinary token that was scored")
        if null > REPEATABILITY_LIMIT:
            detail = f"the same run repeated moves by {null:.3g}: draw from bench.seed, so that a run can be repeated"
            return Check(check, name, "fail", 0, null, detail)
        largest, probed, worst = 0.0, 0, ""
        vocabulary = len(next(iter(first.vectors.values())))
        for t in chosen:
            document = int(np.searchsorted(sample.document_starts, t, side="right")) - 1
            stop = int(ends[document]) if suffix else int(t) + 1
            tokens = sample.tokens.copy()
            fresh = generator.integers(FIRST_ORDINARY_TOKEN, vocabulary - 1, size=stop - t)
            tokens[t:stop] = fresh + (fresh >= tokens[t:stop])  # never the token that was there
            earlier = [p for p in first.vectors if first.ledger.order[p] <= first.ledger.order[t]]
            deviation = _largest_difference(first, trace(tokens), earlier)
            probed += len(earlier)
            if deviation > largest:
                largest, worst = deviation, f"; worst when token {t} (document {document}) was changed"
        verdict: Verdict = "pass" if largest <= 2 * null else "fail"
        detail = f"{len(chosen)} changes, largest move {largest:.3g}, the same run repeated moves {null:.3g}{worst}"
        return Check(check, name, verdict, probed, largest, detail)


def _trace(model: GPT, strategy: Strategy, sample: ValidationSet, group: Group, bench: Bench) -> Trace:
    """Run the strategy from a fresh copy of the model."""
    scratch = copy.deepcopy(model)
    recorder = Recorder(scratch)
    try:
        scorer = Scorer(sample, group, recorder)
        strategy.run(scratch, scorer, bench)
    finally:
        recorder.close()
    return Trace(recorder.vectors, scorer.ledger, recorder.first_state, recorder.moved)


def _largest_difference(a: Trace, b: Trace, positions: list[int]) -> float:
    """Largest absolute difference of log-probabilities; infinite when a position is missing or not a number."""
    largest = 0.0
    for position in positions:
        if position not in b.vectors:
            return float("inf")
        difference = (a.vectors[position] - b.vectors[position]).abs().max().item()
        largest = max(largest, difference if difference == difference else float("inf"))
    return largest


def _normalisation(trace: Trace) -> Check:
    if not trace.vectors:
        return Check("C2a", "full normalised distribution", "skip", 0, 0.0, "no distribution was handed in")
    stacked = torch.stack(list(trace.vectors.values())).double()
    miss = (stacked.exp().sum(-1) - 1.0).abs().max().item()
    good = bool(torch.isfinite(stacked).all()) and miss <= NORMALISATION_LIMIT
    detail = f"sum over {stacked.shape[1]} tokens misses 1 by at most {miss:.2g} (allowed {NORMALISATION_LIMIT:.0e})"
    return Check("C2a", "full normalised distribution", "pass" if good else "fail", len(stacked), miss, detail)


def _realised(trace: Trace, sample: ValidationSet) -> Check:
    """The cost entered is that of the realised token in the very distribution handed in."""
    if not trace.vectors:
        return Check("C2c", "cost is that of the handed-in distribution", "skip", 0, 0.0, "none was handed in")
    misses = [abs(trace.ledger.nats[p] + float(v[int(sample.tokens[p])])) for p, v in trace.vectors.items()]
    largest = max(misses)
    detail = f"entered cost against -log p of the realised token: largest difference {largest:.2g} nats"
    return Check(
        "C2c",
        "cost is that of the handed-in distribution",
        "pass" if largest <= 1e-6 else "fail",
        len(misses),
        largest,
        detail,
    )


def _state(trace: Trace, loaded: str) -> Check:
    started = trace.first_state == loaded
    detail = (
        "state at the first prediction is the artifact's"
        if started
        else "the model was changed before the first prediction"
    )
    detail += f"; {len(trace.moved)} positions were scored after a change made while their tokens were already known"
    good = started and not trace.moved
    return Check(
        "C3",
        "score before update (state hash)",
        "pass" if good else "fail",
        len(trace.vectors),
        float(len(trace.moved)),
        detail,
    )


def _coverage(trace: Trace) -> Check:
    """Every position is in the ledger once, and each was entered for a distribution that went through the scorer."""
    expected = len(trace.ledger.nats) - 1
    scored = int(np.isfinite(trace.ledger.nats).sum())
    once = len(np.unique(trace.ledger.order[1:])) == expected and trace.ledger.complete()
    seen = len(trace.vectors)
    good = once and scored == seen == expected
    detail = f"{scored} of {expected} positions in the ledger, {seen} distributions handed in"
    detail += ", each once and in order within its document" if good else ""
    missing = float(expected - min(scored, seen))
    return Check("C4", "single complete pass (ledger)", "pass" if good else "fail", expected, missing, detail)


def _denominator(validation: ValidationSet) -> Check:
    """Over all validation documents, one by one: bytes charged to tokens against the original's UTF-8 length."""
    charged = np.add.reduceat(validation.token_bytes.astype(np.int64), validation.document_starts)
    misses = np.abs(charged - validation.document_bytes)
    detail = (
        f"{int(charged.sum())} bytes charged to the tokens of all {len(charged)} documents, "
        f"{int(validation.document_bytes.sum())} counted in the original text"
    )
    verdict: Verdict = "fail" if misses.any() else "pass"
    return Check("B1", "byte denominator", verdict, len(charged), float(misses.max()), detail)

"""C2, C3, C4 and M2: what one run left in the ledger and in the recorder's notes."""

from collections.abc import Mapping

import numpy as np
import torch

from pgolf.audit.checks import CLAIMS, Check, Verdict, decided, not_probed
from pgolf.audit.figures import Reported
from pgolf.audit.flips import Flip
from pgolf.audit.policies import Policies
from pgolf.audit.seal import SealBroken
from pgolf.audit.trace import Stage, Trace

NORMALISATION_LIMIT = 1e-5
COST_TOLERANCE = 1e-6
SUM_TOLERANCE = 1e-6
STOPPED = {"C1": "C1a", "C2": "C2a", "C3": "C3a", "C4": "C4a"}
"""Condition of a scorer's refusal -> the check that it fails."""


def stopped(trace: Trace) -> list[Check]:
    """The checks of a strategy that the scorer stopped: the refusal, and what could not be probed any more."""
    assert trace.refusal is not None
    if isinstance(trace.refusal, SealBroken):
        identity, told = "C2b", str(trace.refusal)
    else:
        identity, told = STOPPED[trace.refusal.condition], f"the scorer stopped the strategy: {trace.refusal}"
    refused = Check(identity, "fail", len(trace.positions), None, told)
    peeked = trace.scorer.peeked or trace.scorer.ledger.strangers
    also = [ownership(trace)] if peeked and identity != "C2b" else []
    known = {identity, *(check.id for check in also)}
    rest = [name for name in CLAIMS if name[0] == "C" and name not in known] + ["M1", "M2"]
    return [refused, *also, *(not_probed(name, "the strategy was stopped") for name in rest)]


def normalisation(trace: Trace) -> Check:
    """C2a over every distribution that was handed in."""
    if not len(trace.positions):
        return not_probed("C2a", "no distribution was handed in")
    stacked = trace.vectors.double()
    miss = (stacked.exp().sum(-1) - 1.0).abs().max().item()
    good = bool(torch.isfinite(stacked).all()) and miss <= NORMALISATION_LIMIT
    detail = f"sum over {stacked.shape[1]} tokens misses 1 by at most {miss:.2g} (allowed {NORMALISATION_LIMIT:.0e})"
    return decided("C2a", good, len(stacked), miss, detail)


def ownership(trace: Trace) -> Check:
    """C2b: nobody but the scorer read its text or wrote to its ledger."""
    ledger = trace.scorer.ledger
    scored = np.flatnonzero(np.isfinite(ledger.nats))
    bare = len(np.setdiff1d(scored, trace.positions))
    complaints = [f"{place} read the scorer's own text" for place in sorted(trace.scorer.peeked)]
    complaints += [f"{place} wrote to the ledger" for place in sorted(ledger.strangers)]
    complaints += [f"{bare} entries have no distribution behind them"] if bare else []
    detail = "; ".join(complaints) or "every entry was made by the scorer, for a distribution that was handed in"
    return decided("C2b", not complaints, len(scored), float(bare), detail)


def realised(trace: Trace, stage: Stage, flips: list[Flip], null: float) -> Check:
    """C2c: the entered cost is that of the realised token; with another token in its place it is that token's cost in
    the distribution of before."""
    if not len(trace.positions):
        return not_probed("C2c", "no distribution was handed in")
    entered = torch.from_numpy(trace.scorer.ledger.journal[trace.positions])
    tokens = torch.from_numpy(stage.sample.tokens[trace.positions].astype(np.int64))
    told = -trace.vectors.double().gather(1, tokens[:, None])[:, 0]
    largest = (entered - told).abs().nan_to_num(0.0).max().item()
    other = [abs(f.trace.scorer.ledger.journal[f.position] + float(trace.vector(f.position)[f.token])) for f in flips]
    swapped = max([0.0, *(value for value in other if np.isfinite(value))])
    detail = f"against -log p of the realised token {largest:.2g} nats; of {len(flips)} put in its place {swapped:.2g}"
    good = largest <= COST_TOLERANCE and swapped <= max(COST_TOLERANCE, 2 * null)
    return decided("C2c", good, len(entered) + len(flips), max(largest, swapped), detail)


def state_between(trace: Trace) -> Check:
    """C3a: nothing was learned between hand-out and score."""
    moved = len(trace.recorder.moved)
    detail = f"{moved} positions were scored after a change that was made while their tokens were already handed out"
    return decided("C3a", moved == 0, len(trace.positions), float(moved), detail)


def state_before(trace: Trace, loaded: str) -> Check:
    """C3b: the first prediction is the artifact's."""
    if trace.recorder.first_score is None:
        return not_probed("C3b", "nothing was scored")
    at_input, at_score = trace.recorder.first_input in (None, loaded), trace.recorder.first_score == loaded
    when = "before the first input was asked for" if not at_input else "before the first position was scored"
    good = at_input and at_score
    detail = "the first position was scored by the artifact as it was loaded" if good else f"the model changed {when}"
    return decided("C3b", good, 1, float(not good), detail)


def once(trace: Trace) -> Check:
    """C4a: as many different places in the order as entries, and in each document ascending."""
    ledger = trace.scorer.ledger
    scored = np.flatnonzero(np.isfinite(ledger.nats))
    order = ledger.order[scored]
    repeated = len(order) - len(np.unique(order))
    detail = f"{len(scored)} entries, {repeated} of them share a place in the order"
    return decided("C4a", repeated == 0 and bool((order >= 0).all()), len(scored), float(repeated), detail)


def unedited(trace: Trace, reported: Mapping[str, Reported]) -> Check:
    """C4b: at the end every entry is what was entered, the total is their sum, and so is what each stage reported."""
    ledger = trace.scorer.ledger
    then, now = np.nan_to_num(ledger.journal, nan=-1.0), np.nan_to_num(ledger.nats, nan=-1.0)
    largest, edited = float(np.abs(then - now).max()), int((then != now).sum())
    entered = float(np.nansum(ledger.journal))
    complaints = [f"{edited} entries differ from what was entered"] if edited else []
    if abs(ledger.running().nats - entered) > SUM_TOLERANCE * max(1.0, entered):
        complaints.append(f"entered {entered:.6f} nats, the running sum says {ledger.running().nats:.6f}")
    for stage, one in reported.items():
        if one.nats is not None and abs(one.nats - one.val_loss * one.tokens) > SUM_TOLERANCE * max(1.0, one.nats):
            complaints.append(
                f"{stage} reports {one.val_loss * one.tokens:.3f} nats, its documents have {one.nats:.3f}"
            )
    count = int(np.isfinite(ledger.journal).sum())
    detail = (
        "; ".join(complaints) or f"{count} entries as they were entered; {', '.join(reported)}: the sum of the entries"
    )
    return decided("C4b", not complaints, count, largest, detail)


def dropped(trace: Trace, policies: Policies) -> Check:
    """M2: positions without an entry."""
    ledger = trace.scorer.ledger
    expected, missing = len(ledger.nats) - 1, ledger.unscored()
    named = int((missing & ledger.left_out).sum())
    lost = int(missing.sum()) - named
    detail = f"{lost} of {expected} positions have no entry"
    if named:
        detail += (
            f"; {named} more were left out by the name {ledger.policy} (policy audit.coverage={policies.coverage})"
        )
    allowed = lost == 0 and policies.coverage == "as_declared"
    verdict: Verdict = "pass" if lost + named == 0 else "allowed" if allowed else "fail"
    return Check("M2", verdict, expected, float(lost + named), detail)

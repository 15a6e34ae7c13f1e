"""C1: change what a prediction must not depend on, and see whether it moves."""

from dataclasses import dataclass

import numpy as np

from pgolf.audit.checks import Check, Verdict, not_probed
from pgolf.audit.policies import Policies
from pgolf.audit.trace import FIRST_ORDINARY_TOKEN, Stage, Trace, difference

# A procedure that moves by more than this when it is merely repeated cannot be probed by changing its input.
REPEATABILITY_LIMIT = 1e-4


@dataclass(frozen=True)
class Flip:
    """One changed target: position, the token that was put there, and the run with it."""

    position: int
    token: int
    trace: Trace


class Flips:
    """Runs with changed input beside the run `first` with the sample as it is; null: how far two equal runs differ."""

    def __init__(self, stage: Stage, first: Trace, null: float, flips: int) -> None:
        self.stage, self.first, self.null, self.flips = stage, first, null, flips
        self.vocabulary = first.vectors.shape[1]
        held = stage.sample.tokens[first.positions] >= FIRST_ORDINARY_TOKEN
        self.ordinary = first.positions[held]
        self.generator = np.random.default_rng(20240520)
        self.still: Trace | None = None

    def targets(self) -> list[Flip]:
        """Single changed tokens: half of them at the edges of scored windows, where chunks meet."""
        edges = np.intersect1d(self.ordinary, self.first.recorder.edges)
        at_edges = self.generator.choice(edges, size=min(self.flips // 2, len(edges)), replace=False)
        others = np.setdiff1d(self.ordinary, at_edges)
        more = self.generator.choice(others, size=min(self.flips - len(at_edges), len(others)), replace=False)
        found = []
        for position in np.sort(np.concatenate([at_edges, more]).astype(np.int64)):
            tokens = self.stage.changed(np.array([position]), self.generator, self.vocabulary)
            found.append(Flip(int(position), int(tokens[position]), self.stage.run(tokens)))
        return found

    def target_check(self, changed: list[Flip]) -> Check:
        """C1a over runs with one changed target each."""
        if reason := self._hindrance():
            return reason_check("C1a", reason, self.null)
        moves = [(difference(self.first, one.trace, self.first.upto(one.position)), one.position) for one in changed]
        probed = sum(len(self.first.upto(one.position)) for one in changed)
        more, looked_at = self._by_document(later_too=False)
        return self._judge("C1a", moves + more, probed + looked_at, "changes of one token")

    def _by_document(self, later_too: bool) -> tuple[list[tuple[float, int]], int]:
        """As single changes (later_too: as changes of all that is scored from a place on), many at a time: where
        nothing but learning reaches another document and optimisers stand still, every document can have its own in
        the same run. None where documents are not isolated."""
        if self.still is None:
            return [], 0
        order, documents = self.first.scorer.ledger.order, self.stage.charged_to(self.first.positions)
        moves, looked_at = [], 0
        for _ in range(self.flips):
            ordinary = [own for own in self._ordinary_by_document() if len(own)]
            chosen = [int(self.generator.choice(own)) for own in ordinary]
            later = [own[order[own] >= order[at]] for own, at in zip(ordinary, chosen, strict=True)]
            places = np.sort(np.concatenate(later)) if later_too else np.array(chosen)
            run = self.stage.run(self.stage.changed(places, self.generator, self.vocabulary), frozen=True)
            for position in chosen:
                own = self.first.positions[documents == self.stage.document_of[position]]
                earlier = own[order[own] <= order[position]]
                moves.append((difference(self.still, run, earlier), position))
                looked_at += len(earlier)
        return moves, looked_at

    def _ordinary_by_document(self) -> list[np.ndarray]:
        documents = self.stage.document_of[self.ordinary]
        return [self.ordinary[documents == document] for document in range(self.stage.num_documents)]

    def suffix_check(self) -> Check:
        """C1b: change a token and all that are scored after it, at places spread over the order of scoring."""
        if reason := self._hindrance():
            return reason_check("C1b", reason, self.null)
        order = self.first.scorer.ledger.order
        by_order = self.ordinary[np.argsort(order[self.ordinary], kind="stable")]
        starts = np.isin(by_order, self.first.recorder.edges[::2])
        moves, probed = [], 0
        for index in range(self.flips):
            at = int(len(by_order) * (index + 0.5) / self.flips)
            if index % 2 and starts[at:].any():
                at += int(np.argmax(starts[at:]))  # every second one at the beginning of a window
            tokens = self.stage.changed(np.sort(by_order[at:]), self.generator, self.vocabulary)
            earlier = self.first.upto(int(by_order[at]))
            moves.append((difference(self.first, self.stage.run(tokens), earlier), int(by_order[at])))
            probed += len(earlier)
        more, looked_at = self._by_document(later_too=True)
        return self._judge("C1b", moves + more, probed + looked_at, "changes of all that is scored from a place on")

    def isolation_check(self, policies: Policies) -> Check:
        """C1c: change every other document while optimisers stand still, and look at the ones between. When they do
        not move, `target_check` makes use of it."""
        contexts = self.first.scorer.documents
        documents = self.stage.charged_to(self.first.positions)
        watched, changing = self.first.positions[documents % 2 == 1], np.flatnonzero(self.stage.document_of % 2 == 0)
        if len(watched) == 0:
            return not_probed("C1c", "the sample has one document")
        if reason := self._hindrance():
            return not_probed("C1c", reason)
        still = self.stage.run(frozen=True)
        tokens = self.stage.changed(changing, self.generator, self.vocabulary)
        moved = difference(still, self.stage.run(tokens, frozen=True), watched)
        detail = f"contexts are {contexts}; {self.stage.num_documents} documents, largest move {_figure(moved)}"
        isolated = moved <= 2 * self.null
        self.still = still if isolated else None
        declared = contexts != "isolated"
        if not isolated and declared:
            detail += "; the strategy declares it" + _policy("isolation", policies.isolation)
        elif not isolated:
            detail += ": text of a document reaches the next one past what was learned; a strategy that means to read "
            detail += "across documents says so in scorer.documents"
        allowed = declared and policies.isolation == "as_declared"
        return self._policy_check("C1c", isolated, allowed, len(watched), moved, detail)

    def order_check(self, policies: Policies) -> Check:
        """C1d: change the second half of the documents, and look at the first."""
        half = self.stage.num_documents // 2
        documents = self.stage.charged_to(self.first.positions)
        watched = self.first.positions[documents < half]
        if len(watched) == 0:
            return not_probed("C1d", "the sample has one document")
        if reason := self._hindrance():
            return not_probed("C1d", reason)
        changing = np.flatnonzero(self.stage.document_of >= half)
        run = self.stage.run(self.stage.changed(changing, self.generator, self.vocabulary))
        moved = difference(self.first, run, watched)
        independent = moved <= 2 * self.null
        detail = f"the first {half} documents move by {_figure(moved)} when those behind them change"
        if not independent:
            detail += ": they are not scored in the order of the text" + _policy("order", policies.order)
        return self._policy_check("C1d", independent, policies.order == "any", len(watched), moved, detail)

    def _hindrance(self) -> str:
        """Why no change of the input can be probed; empty when it can."""
        if len(self.ordinary) == 0:
            return "the sample has no ordinary token that was scored"
        if self.null > REPEATABILITY_LIMIT:
            moves = _figure(self.null)
            return f"the same run repeated moves by {moves}: draw from bench.seed, so that a run can be repeated"
        return ""

    def _judge(self, identity: str, moves: list[tuple[float, int]], probed: int, what: str) -> Check:
        largest, position = max(moves)
        detail = f"{len(moves)} {what}, largest move {_figure(largest)}"
        if largest > 2 * self.null:
            document = int(self.stage.document_of[position])
            detail += f", when token {position} (document {document}) was changed"
        verdict: Verdict = "pass" if largest <= 2 * self.null else "fail"
        return Check(identity, verdict, probed, _finite(largest), detail, self.null)

    def _policy_check(self, identity: str, holds: bool, allowed: bool, probed: int, moved: float, detail: str) -> Check:
        verdict: Verdict = "pass" if holds else "allowed" if allowed else "fail"
        return Check(identity, verdict, probed, _finite(moved), detail, self.null)


def reason_check(identity: str, reason: str, null: float) -> Check:
    """A causality check that could not be made: noise is a failure (it could hide anything), an empty sample is not."""
    if null > REPEATABILITY_LIMIT:
        return Check(identity, "fail", 0, _finite(null), reason, _finite(null))
    return not_probed(identity, reason)


def _policy(name: str, value: str) -> str:
    return f" (policy audit.{name}={value})"


def _figure(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "past measure: positions are missing or not a number"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

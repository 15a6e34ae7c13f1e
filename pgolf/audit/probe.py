"""The dynamic check of the validity conditions on any strategy: run it, change what it must not see, run it again.

C1 strict causal dependence, C2 full normalised distribution, C3 score before update, C4 a single left-to-right pass
(the conditions of the parameter-golf field guide, issue 1017), the byte denominator, and the same score on several
processes. `checks` says what is claimed and how it is probed.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from pgolf.audit import byte_checks, entries
from pgolf.audit.artifact import validation_files
from pgolf.audit.checks import CLAIMS, Check, not_probed
from pgolf.audit.figures import Reported, of_total
from pgolf.audit.flips import Flips
from pgolf.audit.policies import Policies
from pgolf.audit.processes import process_check
from pgolf.audit.trace import Stage, Trace, difference, sample_of
from pgolf.data.dataset import Dataset
from pgolf.data.validation import ValidationSet
from pgolf.model.gpt import GPT
from pgolf.score.ledger import RuleBroken
from pgolf.ttt.strategy import Bench, Strategy


class Audit:
    """Probes a strategy on the first `documents` validation documents, cut to at most `max_tokens` tokens, with `flips`
    changed places for each kind of change.

    Works on any strategy and any model, on CPU, in seconds: it tests the procedure, not the score. In a run it takes a
    sample of the checks; `pgolf audit` makes all. isolation, order, processes, coverage: see `Policies`.
    """

    def __init__(
        self,
        *,
        documents: int,
        max_tokens: int,
        flips: int,
        isolation: Literal["as_declared", "isolated"] = "as_declared",
        order: Literal["any", "text"] = "any",
        processes: Literal["equal", "any"] = "equal",
        coverage: Literal["every_token", "as_declared"] = "every_token",
    ) -> None:
        if documents < 1 or max_tokens < 4 or flips < 1:
            raise ValueError("audit.documents and audit.flips must be at least 1, audit.max_tokens at least 4")
        self.documents, self.max_tokens, self.flips = documents, max_tokens, flips
        self.policies = Policies(isolation, order, processes, coverage)

    def scope(self, strategy: Strategy) -> tuple[Strategy, str]:
        """The strategy as it is probed, and a sentence that says on what, and under which policies.

        A strategy may have a method miniature(documents) -> (strategy, what was made smaller), so that all its
        mechanisms act within the sample; one without is probed as it is.
        """
        said = f"{self.documents} documents of at most {self.max_tokens} tokens"
        shrink = getattr(strategy, "miniature", None)
        small, what = (strategy, "") if shrink is None else shrink(self.documents)
        named = ", ".join(f"{name}={value}" for name, value in asdict(self.policies).items())
        return small, "; ".join(part for part in (said, what, f"policies {named}") if part)

    def run(
        self,
        model: GPT,
        strategy: Strategy,
        validation: ValidationSet,
        bench: Bench,
        *,
        dataset: Dataset | None = None,
        reported: Mapping[str, Reported] | None = None,
        thorough: bool = False,
    ) -> list[Check]:
        """The checks of `strategy` starting from `model` as it was loaded from the artifact (left unchanged).

        dataset: where the validation text comes from, for what can only be checked with its tokenizer. reported: the
        figures of finished scorings of the whole text, by stage. thorough: what a run leaves to `pgolf audit`, too.
        """
        sample = sample_of(validation, self.documents, self.max_tokens)
        files = validation_files(dataset) if dataset is not None else []
        stage = Stage(model, self.scope(strategy)[0], sample, bench, files)
        first = stage.run()
        figures = dict(reported or {}) or _of_sample(first)
        scored = entries.stopped(first) if first.refusal is not None else self._probes(stage, first, figures, thorough)
        text = validation if reported else stage.sample
        found = [
            *scored,
            byte_checks.denominator(validation, dataset),
            byte_checks.round_trip(validation, dataset),
            byte_checks.single_tokens(dataset),
            byte_checks.self_consistency(text, figures),
        ]
        return sorted(found, key=lambda check: list(CLAIMS).index(check.id))

    def _probes(self, stage: Stage, first: Trace, figures: Mapping[str, Reported], thorough: bool) -> list[Check]:
        null = difference(first, stage.run(), first.positions)
        flips = Flips(stage, first, null, self.flips)
        isolation, changed = flips.isolation_check(self.policies), flips.targets()
        found = [
            flips.target_check(changed),
            flips.suffix_check(),
            isolation,
            flips.order_check(self.policies),
            entries.normalisation(first),
            entries.ownership(first),
            entries.realised(first, stage, changed, null),
            entries.state_between(first),
            entries.state_before(first, stage.loaded),
            entries.once(first),
            entries.unedited(first, figures),
            entries.dropped(first, self.policies),
        ]
        if thorough:
            return [*found, process_check(stage, first, self.policies)]
        return [*found, not_probed("M1", "a sample in a run leaves it out; `pgolf audit` makes it")]


def _of_sample(trace: Trace) -> dict[str, Reported]:
    """The figures of the sample itself, where all of it was scored."""
    if trace.scorer.ledger.unscored().any():
        return {}  # which a check above says
    try:
        return {"sample": of_total(trace.scorer.total())}
    except RuleBroken:
        return {}  # which a check above says

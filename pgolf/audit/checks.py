"""What is claimed of a scoring, how each claim is probed, and the outcome of a probe."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "allowed", "not probed"]
"""allowed: the claim does not hold, and a named policy of the audit says that it need not."""


@dataclass(frozen=True)
class Claim:
    """One line of the checklist. essential: an audit in which it was not probed is no pass."""

    name: str
    probe: str
    essential: bool = True


CLAIMS: dict[str, Claim] = {
    "C1a": Claim(
        "a target does not move its own prediction",
        "one token is changed: all distributions up to and including its own must be those of before",
    ),
    "C1b": Claim(
        "what is scored later moves no prediction",
        "a token and all tokens scored after it are changed, with adaptation and caches live",
    ),
    "C1c": Claim(
        "documents are isolated",
        "every other document is changed while optimisers stand still: no distribution of the others may move",
        essential=False,
    ),
    "C1d": Claim(
        "no document depends on one behind it in the text",
        "the second half of the documents is changed, with adaptation live: the first half must not move",
        essential=False,
    ),
    "C2a": Claim("a full normalised distribution", "sum over the whole vocabulary in float64, at every position"),
    "C2b": Claim(
        "the scorer alone reads targets and enters costs",
        "who read the scorer's text and who wrote to its ledger, and a distribution behind every entry",
    ),
    "C2c": Claim(
        "the cost is that of the handed-in distribution",
        "entered cost against -log p; and with another target in its place, against the distribution of before",
    ),
    "C3a": Claim(
        "score before update",
        "hash of weights, buffers and adapters, and count of optimiser steps, from hand-out to score",
    ),
    "C3b": Claim(
        "scoring begins with the artifact's state",
        "hash of weights and buffers at the first input and at the first score against the loaded artifact",
    ),
    "C4a": Claim("every position once, left to right", "the order in the ledger, and what the scorer refused"),
    "C4b": Claim("one result, and it is the ledger's sum", "every entry at the end against the entry as it was made"),
    "M1": Claim(
        "the same score on two processes",
        "two processes share the work: nats, tokens and bytes summed, and the weights of both",
        essential=False,
    ),
    "M2": Claim("no token is dropped", "positions without an entry, tail included"),
    "B1": Claim("bytes charged are bytes of text", "every document against its UTF-8 length, counted another way"),
    "B2": Claim(
        "tokens decode to the original", "SHA-256 of decoded documents against the originals'", essential=False
    ),
    "B3": Claim(
        "bytes of single tokens",
        "a table of pieces with known bytes, and every piece of the vocabulary",
        essential=False,
    ),
    "B4": Claim("the result implies the text's bytes", "loss / ln 2 * tokens / bits per byte against the text"),
    "D6": Claim(
        "the artifact does not depend on the validation text",
        "train, calibrate and pack twice, the second time beside another validation text, its files sealed",
        essential=False,
    ),
}


@dataclass(frozen=True)
class Check:
    """One probed claim: on how many positions (or documents, pieces, entries), the largest deviation seen, the one
    that is seen when nothing is changed (null), and what it means. None: nothing was measured."""

    id: str
    verdict: Verdict
    probed: int
    largest: float | None
    detail: str
    null: float | None = None

    @property
    def name(self) -> str:
        """The claim in words."""
        return CLAIMS[self.id].name


def decided(identity: str, good: bool, probed: int, largest: float | None, detail: str) -> Check:
    """A check that passes when `good`, and fails when not."""
    return Check(identity, "pass" if good else "fail", probed, largest, detail)


def not_probed(identity: str, reason: str) -> Check:
    """A check that could not be made, and why."""
    return Check(identity, "not probed", 0, None, reason)


def table(checks: list[Check], scope: str = "") -> dict[str, Any]:
    """The `audit` entry of summary.json.

    The verdict is `pass` only when nothing failed and every essential claim was probed (or allowed by a named policy).
    """
    seen = {check.id for check in checks if check.verdict in ("pass", "allowed")}
    lacking = [identity for identity, claim in CLAIMS.items() if claim.essential and identity not in seen]
    passed = not lacking and all(check.verdict != "fail" for check in checks)
    rows = [{"name": check.name, "probe": CLAIMS[check.id].probe, **asdict(check)} for check in checks]
    return {"verdict": "pass" if passed else "fail", "scope": scope, "checks": rows}


def failed(checks: list[Check]) -> list[str]:
    """Ids of the checks that failed."""
    return [check.id for check in checks if check.verdict == "fail"]

"""The outcome of a probe."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "skip"]


@dataclass(frozen=True)
class Check:
    """One probed condition: how many positions were probed, the largest deviation seen, and what it means."""

    id: str
    name: str
    verdict: Verdict
    probed: int
    largest: float
    detail: str


def table(checks: list[Check], scope: str = "") -> dict[str, Any]:
    """The `audit` entry of summary.json: verdict and checks. The verdict is `fail` when one failed or none could be
    probed."""
    failed = any(check.verdict == "fail" for check in checks)
    passed = any(check.verdict == "pass" for check in checks)
    verdict = "pass" if passed and not failed else "fail"
    return {"verdict": verdict, "scope": scope, "checks": [asdict(check) for check in checks]}

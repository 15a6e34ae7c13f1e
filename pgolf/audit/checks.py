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
    """The `audit` entry of summary.json. The verdict is `pass` only when there are checks and all of them passed."""
    passed = bool(checks) and all(check.verdict == "pass" for check in checks)
    return {"verdict": "pass" if passed else "fail", "scope": scope, "checks": [asdict(check) for check in checks]}

"""May two groups of runs be compared at all? Refusals, and warnings about what else differs or was left out."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgolf import register
from pgolf.errors import UserError
from pgolf.report import statistics
from pgolf.report.runs import Run

if TYPE_CHECKING:
    from pgolf.report.comparison import Group


@dataclass(frozen=True)
class Allowed:
    """What the user has said may differ."""

    data: bool = False
    code: bool = False


NOTHING = Allowed()


def check(base: "Group", candidate: "Group", allowed: Allowed = NOTHING) -> list[str]:
    """Warnings about comparing candidate with base; UserError when that would compare unlike things.

    Refused unless `allowed`: other data or tokenizer (the digest of the data set covers both), other tokens or bytes
    scored (the denominator of bits per byte), other code.
    """
    return [
        *check_data(base, candidate, allowed.data),
        *_denominators(base, candidate, allowed.data),
        *_code(base, candidate, allowed.code),
        *_environment(base, candidate),
        *_left_out(base),
        *_left_out(candidate),
    ]


def check_data(base: "Group", candidate: "Group", allow: bool) -> list[str]:
    """A warning when the sides scored different data and that is allowed; else UserError."""
    digests = {run.data_digest for group in (base, candidate) for run in group.runs}
    if len(digests) == 1 and "unknown" not in digests:
        return []
    shown = ", ".join(sorted(one[:16] for one in digests))
    where = _sides(base, candidate)
    if not allow:
        raise UserError(
            f"{where} did not score the same data (data digests: {shown}): their bits per byte "
            "cannot be compared; prepare both with one manifest, or pass --allow-different-data."
        )
    return [
        (f"DIFFERENT DATA: {where} have the data digests {shown}; the difference below mixes the data with the recipe.")
    ]


def _denominators(base: "Group", candidate: "Group", allow: bool) -> list[str]:
    counts = {(run.tokens, run.num_bytes) for group in (base, candidate) for run in group.runs}
    if len(counts) == 1:
        return []
    shown = ", ".join(f"{tokens:,} tokens and {num_bytes:,} bytes" for tokens, num_bytes in sorted(counts))
    where = _sides(base, candidate)
    if not allow:
        raise UserError(
            f"{where} did not score the same text ({shown}): the denominators of their bits per byte differ, so one "
            "left something out or counted bytes otherwise; score both alike, or pass --allow-different-data."
        )
    return [f"DIFFERENT DENOMINATORS: {where} scored {shown}."]


def _code(base: "Group", candidate: "Group", allow: bool) -> list[str]:
    hashes = {run.code_hash for group in (base, candidate) for run in group.runs}
    if len(hashes) == 1 and "unknown" not in hashes:
        return []
    shown = ", ".join(sorted(one[:16] for one in hashes))
    where = _sides(base, candidate)
    if not allow:
        raise UserError(
            f"{where} ran different code (code hashes: {shown}): a difference could come from the code and not from "
            "the recipe; run both with one version, or pass --allow-different-code."
        )
    return [f"DIFFERENT CODE: {where} have the code hashes {shown}; the difference below mixes code with recipe."]


def _environment(base: "Group", candidate: "Group") -> list[str]:
    """Warnings about world sizes, devices, versions, repeated seeds, audits and denominators that do not add up."""
    runs = [*base.runs, *candidate.runs]
    warnings = []
    for key, what in (("world_size", "world sizes"), ("device", "devices"), ("torch", "torch versions")):
        found = sorted({str(run.identity.get(key, "unknown")) for run in runs})
        if len(found) > 1:
            shown = ", ".join(one[:24] for one in found)
            warnings.append(f"{what} differ: {shown}.")
    for group in (base, candidate):
        repeats = sorted({run.seed for run in group.runs if _count(group, run.seed) > 1})
        if repeats:
            warnings.append(
                f"{group.label}: seed {', '.join(map(str, repeats))} ran more than once; its runs "
                "are averaged and count as one seed."
            )
    for run in runs:
        if (run.summary.get("audit") or {}).get("verdict") != "pass":
            warnings.append(f"{run.directory} did not pass its audit: its score may not be a valid one.")
    warnings.extend(filter(None, (check_denominator(run) for run in runs)))
    return warnings


def _left_out(group: "Group") -> list[str]:
    """A warning for every seed of the recipe that was started beside these runs and is not among them."""
    warnings = []
    counted = {run.directory for run in group.runs}
    for folder in sorted({directory.parent for directory in counted}):
        shown = {run.seed for run in group.runs if run.directory.parent == folder}
        for one in register.read(folder):
            if one.group != group.digest or folder / one.directory in counted or one.seed in shown:
                continue
            happened = {"running": "was started and has no result", "done": "finished"}.get(one.state, "failed")
            gone = "" if (folder / one.directory).is_dir() else "; its directory is gone"
            reason = f" ({one.error})" if one.error else ""
            warnings.append(
                f"LEFT OUT of {group.label}: seed {one.seed} {happened}{reason}{gone}. "
                "A mean over chosen seeds is no mean."
            )
    return warnings


def check_denominator(run: Run) -> str | None:
    """A sentence when val_bpb is not val_loss / ln 2 * tokens / bytes of the final stage."""
    implied = statistics.bits_per_byte(run.val_loss, run.tokens, run.num_bytes)
    if math.isclose(implied, run.val_bpb, rel_tol=1e-5):
        return None
    return (
        f"{run.directory}: val_bpb {run.val_bpb:.6f} does not follow from val_loss, tokens and "
        f"bytes (they give {implied:.6f}): do not trust it before the byte count is explained."
    )


def _count(group: "Group", seed: int) -> int:
    return sum(run.seed == seed for run in group.runs)


def _sides(base: "Group", candidate: "Group") -> str:
    return f"{base.label} and {candidate.label}" if base is not candidate else base.label

"""`pgolf compare BASE CANDIDATE ...`: is the candidate better, by how much, and how sure?"""

import argparse
import math
from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import write_json
from pgolf.report import statistics
from pgolf.report.comparability import Allowed, check_data
from pgolf.report.comparison import (
    AS_APPLIED_ALPHA,
    CAUTIOUS_NATS,
    README_ALPHA,
    Comparison,
    Group,
    as_json,
    compare_groups,
    make_groups,
)
from pgolf.report.matched import tokens_per_second
from pgolf.report.runs import Found, figure, find_runs
from pgolf.report.tables import text_table

COLUMNS_AT_ONCE = 3
AFTER_TRAINING = frozenset({"ttt", "quant", "audit", "kernels", "compile_scoring"})
"""What `pgolf eval` can change without training."""


def main(argv: list[str] | None = None) -> int:
    """Compare groups of runs and print the result; returns the exit status."""
    arguments = _parser().parse_args(argv)
    left, right = find_runs([arguments.base]), find_runs(arguments.candidate)
    base, candidates = choose_groups(left, right)
    allowed = Allowed(arguments.allow_different_data, arguments.allow_different_code)
    check_data(base, base, allowed.data)
    cautious = min(CAUTIOUS_NATS, arguments.margin) if arguments.cautious is None else arguments.cautious
    if cautious > arguments.margin:
        raise UserError(f"--cautious {cautious} must not be above --margin {arguments.margin}.")
    comparisons = [
        compare_groups(base, one, arguments.margin, allowed, arguments.replicates, cautious) for one in candidates
    ]
    print(render(base, comparisons, arguments.margin, cautious))
    problems = {problem.directory: problem for problem in [*left.problems, *right.problems]}
    if problems:
        print("\nNOT COUNTED")
        for problem in problems.values():
            print(f"  {problem.directory}: {problem.reason}")
    if arguments.json:
        content = as_json(base, comparisons)
        content["margin_nats"] = arguments.margin
        content["not_counted"] = [{"directory": str(one.directory), "reason": one.reason} for one in problems.values()]
        write_json(arguments.json, content)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgolf compare",
        description="Compare candidates with a base over seeds and over documents. "
        "Each side is a run directory or a folder of runs that differ by their seed.",
    )
    parser.add_argument("base", type=Path, metavar="BASE")
    parser.add_argument("candidate", type=Path, metavar="CANDIDATE", nargs="+")
    parser.add_argument(
        "--margin",
        type=_margin,
        default=statistics.MARGIN_NATS,
        metavar="NATS",
        help="gain in nats per token that the readme policy asks for (default: %(default)s)",
    )
    parser.add_argument(
        "--replicates",
        type=_replicates,
        default=5000,
        metavar="N",
        help="bootstrap samples over documents (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-different-data",
        action="store_true",
        help="compare runs whose data digests differ, and say so in the output",
    )
    parser.add_argument(
        "--allow-different-code",
        action="store_true",
        help="compare runs of different versions of the code, and say so in the output",
    )
    parser.add_argument(
        "--cautious",
        type=_margin,
        metavar="NATS",
        help=f"gain from which a screen says cautious, not null; from --margin on: promote (default: {CAUTIOUS_NATS})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")
    return parser


def _margin(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError("must be zero or more")
    return value


def _replicates(text: str) -> int:
    value = int(text)
    if value < 100:
        raise argparse.ArgumentTypeError("must be 100 or more")
    return value


def choose_groups(left: Found, right: Found) -> tuple[Group, list[Group]]:
    """The base group and the candidate groups; runs of the base are no candidates of it."""
    base_groups = left.groups()
    if len(base_groups) != 1:
        raise UserError(_base_problem(left))
    base_runs = next(iter(base_groups.values()))
    taken = {run.directory for run in base_runs}
    others = [run for run in right.runs if run.directory not in taken]
    if not others:
        reasons = "; ".join(f"{one.directory}: {one.reason}" for one in right.problems)
        raise UserError(f"CANDIDATE has no finished run besides those of BASE{': ' if reasons else ''}{reasons}")
    base_digest = base_runs[0].group
    candidate_groups = Found(others, []).groups()
    # A repetition of the base recipe elsewhere is a candidate with the same digest.
    named = make_groups({"": base_runs, **candidate_groups})
    return Group(base_digest, base_runs[0].name, base_runs), named[1:]


def _base_problem(found: Found) -> str:
    if not found.runs:
        reasons = "; ".join(f"{one.directory}: {one.reason}" for one in found.problems)
        return f"BASE has no finished run ({reasons})."
    listing = "; ".join(
        f"{group.label}: {', '.join(str(run.directory) for run in group.runs)}" for group in make_groups(found.groups())
    )
    return f"BASE must hold one recipe (runs that differ by seed alone), but has: {listing}"


def render(base: Group, comparisons: list[Comparison], margin: float, cautious: float = CAUTIOUS_NATS) -> str:
    """The whole comparison as text."""
    parts = []
    warnings = list(dict.fromkeys(text for one in comparisons for text in one.warnings))
    if warnings:
        parts.append("WARNINGS\n" + "\n".join(f"  ! {text}" for text in warnings))
    for start in range(0, len(comparisons), COLUMNS_AT_ONCE):
        shown = comparisons[start : start + COLUMNS_AT_ONCE]
        columns = [_group_column(base, base.bytes_per_token) + ["-"] * len(_RESULT_LABELS)]
        for one in shown:
            column = _group_column(one.candidate, one.bytes_per_token)
            columns.append(column + _result_column(one))
        labels = [*_GROUP_LABELS, *(label.format(margin=margin) for label in _RESULT_LABELS)]
        rows = [list(row) for row in zip(labels, *columns, strict=True) if set(row[1:]) - {"-", ""}]
        headers = ["", f"{base.label} (base)", *[one.candidate.label for one in shown]]
        parts.append(text_table(headers, rows))
    parts.append(_legend(margin, cautious, len(comparisons)))
    for one in comparisons:
        parts.append(_notes(base, one))
    return "\n\n".join(parts)


_GROUP_LABELS = (
    "seeds (n)",
    "val_bpb mean",
    "  std over seeds",
    "  95 % interval",
    "nats per token",
    "artifact bytes, worst seed",
    "  fits (the worst seed decides)",
)
_RESULT_LABELS = (
    "gain, bits per byte",
    "  95 % interval (seeds)",
    "gain, nats per token",
    "  95 % interval (seeds)",
    "p (gain > 0)",
    "p (gain >= {margin} nats)",
    "same-seed pairs",
    "  p (gain > 0)",
    "  p (gain >= {margin} nats)",
    "documents: gain, bits per byte",
    "  95 % interval (documents)",
    "detectable gain, nats per token",
    "verdict readme",
    "verdict as_applied",
    "screen",
)


def _group_column(group: Group, bytes_per_token: float) -> list[str]:
    sample = statistics.summarise(list(group.bpb.values()))
    nats = statistics.summarise(list(group.nats(bytes_per_token).values()))
    seeds = ",".join(map(str, group.bpb))
    shown = seeds if len(seeds) <= 24 else f"{seeds[:21]}..."
    return [
        f"{shown} ({sample.n})",
        f"{sample.mean:.5f}",
        f"{sample.std:.5f}" if sample.std is not None else "none: one seed",
        _interval(sample.low, sample.high, 5, signed=False) if sample.n > 1 else "none: one seed",
        f"{nats.mean:.5f}",
        *_artifact(group),
    ]


def _artifact(group: Group) -> list[str]:
    """The largest artifact of all seeds and whose it is; one that does not fit is enough."""
    known = [(figure(run.summary, "artifact.total_bytes"), run) for run in group.runs]
    sized = [(size, run.seed, run.summary["artifact"]) for size, run in known if size is not None]
    if not sized:
        return ["-", "-"]
    size, seed, artifact = max(sized, key=lambda one: one[0])
    limit, over = artifact.get("limit_bytes"), [one[1] for one in sized if one[2].get("fits") is False]
    verdict = f"NO: seed {', '.join(map(str, over))}" if over else "yes"
    return [f"{size:,.0f} (seed {seed})", f"{verdict}, limit {limit:,}" if limit else verdict]


def _result_column(one: Comparison) -> list[str]:
    scale = math.log(2) * one.bytes_per_token
    low, high = one.any_gain.low, one.any_gain.high
    documents = one.documents
    return [
        f"{one.gain_bpb:+.5f}",
        _interval(None if low is None else low / scale, None if high is None else high / scale, 5),
        f"{one.gain_nats:+.5f}",
        _interval(low, high, 5),
        _p(one.any_gain.p),
        _p(one.margin_gain.p),
        f"{one.paired.n}",
        _p(one.paired.p),
        _p(one.paired_margin.p),
        f"{documents.gain:+.5f}" if documents else "none",
        _interval(documents.low, documents.high, 5) if documents else "none",
        f"{one.detectable_nats:.5f}" if one.detectable_nats is not None else "unknown",
        one.verdicts["readme"],
        one.verdicts["as_applied"],
        one.bucket,
    ]


def _interval(low: float | None, high: float | None, digits: int, signed: bool = True) -> str:
    if low is None or high is None:
        return "none"
    sign = "+" if signed else ""
    return f"{low:{sign}.{digits}f} .. {high:{sign}.{digits}f}"


def _p(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _legend(margin: float, cautious: float, candidates: int) -> str:
    lines = [
        "gain = base - candidate: positive means that the candidate is better.",
        ("p (Welch, one-sided): the chance of a gain this large if the true gain were 0 (or the margin)."),
        (f"readme: p (gain >= {margin} nats) < {README_ALPHA}.  as_applied: p (gain > 0) < {AS_APPLIED_ALPHA}."),
        "The seed interval speaks about training again, the document interval about other text for these very weights.",
        (
            "detectable gain: the true gain above the bar (0, or the margin) that these seeds "
            f"would show\n  in 80 of 100 tries at p < {README_ALPHA}."
        ),
        (
            f"screen: promote from {margin} nats on, cautious from {cautious}, regression from -{cautious} down, else "
            "null; it says what to run\n  next (screen on one seed, confirm on three), not what is true."
        ),
    ]
    if candidates > 1:
        lines.append(
            f"{candidates} candidates were tested; p values are not corrected: for one claim out "
            f"of all, divide the bar by {candidates}."
        )
    return "\n".join(lines)


def _power(one: Comparison) -> str:
    """When the document interval answers the question: when both sides score the same weights."""
    retrained = sorted({key.partition(".")[0] for key in one.config} - AFTER_TRAINING)
    if one.config and not retrained:
        return "only what follows training differs, so this paired interval answers the question; seeds add little"
    return "the sides were trained apart, so it cannot say whether training again would repeat this: the seeds do"


def _matched_lines(base: Group, one: Comparison) -> list[str]:
    """Training losses at matched steps and seconds, with the throughput that tells them apart."""
    lines = []
    for point in one.matched:
        where = f"step {point.at:.0f}" if point.kind == "step" else f"{point.at:.1f} s of training"
        lines.append(
            f"  training loss at matched {point.kind}s ({where}): {point.base:.4f} -> {point.candidate:.4f} nats per "
            f"token, gain {point.gain:+.4f} ({len(point.seeds)} shared seed{'s' * (len(point.seeds) > 1)})"
        )
    rates = tokens_per_second(base), tokens_per_second(one.candidate)
    if one.matched and rates[0] and rates[1]:
        lines.append(f"  training tokens per second: {rates[0]:,.0f} -> {rates[1]:,.0f} ({rates[1] / rates[0]:.3f}x)")
    return lines


def _notes(base: Group, one: Comparison) -> str:
    ratio = one.bytes_per_token
    lines = [
        f"{base.label} -> {one.candidate.label}",
        (
            f"  1 token = {ratio:.6f} bytes, so 0.005 nats per token = "
            f"{statistics.MARGIN_NATS / math.log(2) / ratio:.6f} bits per byte"
        ),
    ]
    for test in (one.any_gain, one.paired):
        if test.reason:
            lines.append(f"  {test.method}: {test.reason}")
    if one.documents_reason:
        lines.append(f"  documents: {one.documents_reason}")
    elif one.documents:
        lines.append(
            f"  documents: {one.documents.documents} documents, {one.documents.replicates} samples; {_power(one)}"
        )
    lines.extend(_matched_lines(base, one))
    lines.append(f"  to reach readme at the observed gain: {one.more_seeds['readme']}")
    lines.append(f"  to reach as_applied at the observed gain: {one.more_seeds['as_applied']}")
    if one.config:
        lines.append("  configuration, base -> candidate:")
        lines.extend(f"    {key}: {was} -> {now}" for key, (was, now) in one.config.items())
    else:
        lines.append("  configuration: no difference")
    return "\n".join(lines)

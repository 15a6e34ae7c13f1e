"""Where bits are spent: bits per byte by document length and by position, and differences with paired intervals."""

import math
from dataclasses import dataclass

import numpy as np

from pgolf.errors import UserError
from pgolf.report import statistics
from pgolf.report.comparison import Group
from pgolf.report.runs import Documents, Run
from pgolf.report.sections import STAGE_NAMES, Table

REPLICATES = 2000
NAMES = dict(STAGE_NAMES)


def tables(run: Run) -> list[Table]:
    """The tables of one run, as far as it wrote down what they need; a damaged scores.npz is named elsewhere."""
    try:
        found = [by_length(run.documents())]
    except UserError:
        found = []
    return [table for table in [*found, by_position(run)] if table]


def by_length(documents: Documents) -> Table | None:
    """Bits per byte of every stage by document length, and what the last stage changed, paired by document."""
    stages = [stage for stage in NAMES if stage in documents.nats]
    before = "post_quant" if "post_quant" in documents.nats else None
    rows = []
    for longest, chosen in _buckets(documents):
        num_bytes = documents.num_bytes[chosen]
        figures = [_bpb(documents.nats[stage][chosen].sum(), num_bytes.sum()) for stage in stages]
        gain = _difference(documents.nats[before], documents.nats["final"], documents, chosen) if before else []
        rows.append([f"up to {longest:,}", f"{chosen.sum():,}", f"{num_bytes.sum():,}", *figures, *gain])
    headers = ["document, tokens", "documents", "bytes", *[NAMES[stage] for stage in stages]]
    headers += ["final minus compressed", "95 % interval, paired by document"] if before else []
    return Table("Bits per byte by document length", headers, rows) if rows else None


def by_position(run: Run) -> Table | None:
    """Bits per byte of every stage by how far into its document a position is; None for runs that did not record it."""
    stages = {name: run.summary["stages"].get(name, {}).get("positions") for name in NAMES}
    known = {name: {row["to"]: row for row in rows} for name, rows in stages.items() if rows}
    if "final" not in known:
        return None
    rows = []
    for to, row in known["final"].items():
        figures = [
            _bpb(one[to]["nats"], one[to]["bytes"]) if to in one and one[to]["bytes"] else "no bytes"
            for one in known.values()
        ]
        rows.append([f"up to {to:,}", f"{row['tokens']:,}", f"{row['bytes']:,}", *figures])
    headers = ["position in document", "tokens", "bytes", *[NAMES[name] for name in known]]
    return Table("Bits per byte by position", headers, rows)


@dataclass(frozen=True)
class Difference:
    """A group minus the first in bits per byte over documents of at most `longest` tokens (None: all), and the 95 %
    interval of its bootstrap over documents; one document alone has none (low = high = change)."""

    longest: int | None
    documents: int
    change: float
    low: float
    high: float


def differences(groups: list[Group]) -> dict[str, list[Difference]]:
    """Every group minus the first by document length, nats averaged over seeds; a group that scored other documents is
    left out. UserError where a run did not write down its documents."""
    base, base_nats = _mean(groups[0])
    found = {}
    for group in groups[1:]:
        documents, nats = _mean(group)
        if not _same(documents, base):
            continue
        everything = np.ones(len(base.document), dtype=bool)
        found[group.label] = [
            Difference(longest, int(chosen.sum()), *_change(base_nats, nats, base, chosen))
            for longest, chosen in [(None, everything), *_buckets(base)]
            if base.num_bytes[chosen].sum()
        ]
    return found


def length_comparison(groups: list[Group]) -> list[Table]:
    """Every group minus the first, by document length, nats averaged over seeds; empty where they cannot be paired."""
    if len(groups) < 2:
        return []
    try:
        found = differences(groups)
    except UserError:  # each run's own section says what is missing
        return []
    rows = []
    for group in groups[1:]:
        if group.label not in found:
            rows.append([group.label, "all", "", "other documents: not comparable", ""])
        for one in found.get(group.label, []):
            name = "all" if one.longest is None else f"up to {one.longest:,}"
            rows.append([group.label, name, f"{one.documents:,}", f"{one.change:+.5f}", _interval(one.low, one.high)])
    headers = ["group", "document, tokens", "documents", f"minus {groups[0].label}, bits per byte"]
    return [Table("Difference by document length", [*headers, "95 % interval, paired by document"], rows, left=2)]


def _same(documents: Documents, base: Documents) -> bool:
    return np.array_equal(documents.document, base.document) and np.array_equal(documents.num_bytes, base.num_bytes)


def _mean(group: Group) -> tuple[Documents, np.ndarray]:
    """The documents of a group's first run, and their final nats averaged over its runs."""
    every = [run.documents() for run in group.runs]
    if any(not np.array_equal(one.document, every[0].document) for one in every):
        raise UserError(f"the runs of {group.label} did not score the same documents")
    return every[0], np.mean([one.nats["final"] for one in every], axis=0)


def _buckets(documents: Documents) -> list[tuple[int, np.ndarray]]:
    """(longest, mask) of the documents by length in tokens, doubling."""
    doublings = np.ceil(np.log2(np.maximum(documents.tokens, 1) / 16)).clip(min=0).astype(int)
    return [(16 * 2**step, doublings == step) for step in np.unique(doublings).tolist()]


def _difference(base: np.ndarray, candidate: np.ndarray, documents: Documents, chosen: np.ndarray) -> list[str]:
    """candidate - base in bits per byte over the chosen documents, and its interval."""
    if not documents.num_bytes[chosen].sum():
        return ["no bytes", ""]
    change, low, high = _change(base, candidate, documents, chosen)
    return [f"{change:+.5f}", _interval(low, high)]


def _change(
    base: np.ndarray, candidate: np.ndarray, documents: Documents, chosen: np.ndarray
) -> tuple[float, float, float]:
    """candidate - base in bits per byte over the chosen documents, and its interval: of no width for one document."""
    num_bytes = documents.num_bytes[chosen]
    try:
        found = statistics.bootstrap_documents(base[chosen], candidate[chosen], num_bytes, REPLICATES)
    except ValueError:
        change = float((candidate[chosen].sum() - base[chosen].sum()) / math.log(2) / num_bytes.sum())
        return change, change, change
    return -found.gain, -found.high, -found.low


def _interval(low: float, high: float) -> str:
    return "none: one document" if low == high else f"{low:+.5f} .. {high:+.5f}"


def _bpb(nats: float, num_bytes: float) -> str:
    return f"{nats / math.log(2) / num_bytes:.5f}" if num_bytes else "no bytes"

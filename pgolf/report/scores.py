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
PARTS = 10
NAMES = dict(STAGE_NAMES)


def tables(run: Run) -> list[Table]:
    """The tables of one run, as far as it wrote down what they need; a damaged scores.npz is named elsewhere."""
    try:
        found = [by_length(run.documents())]
    except UserError:
        found = []
    return [table for table in [*found, by_position(run), as_scored(run)] if table]


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
    headers += ["final minus compressed", "95 % interval, paired by document", "mean over documents"] if before else []
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


def as_scored(run: Run) -> Table | None:
    """The score over the documents so far, after each tenth of them in the order in which they were scored, of all
    processes together; None for runs that did not record the order."""
    try:
        documents = run.documents()
    except UserError:  # named elsewhere
        return None
    if documents.order is None or documents.phase is None or len(documents.order) < PARTS:
        return None
    by_order = np.argsort(documents.order, kind="stable")
    num_bytes = documents.num_bytes[by_order].cumsum()
    stages = [stage for stage in ("post_quant", "final") if stage in documents.nats]
    nats = {stage: documents.nats[stage][by_order].cumsum() for stage in stages}
    rows = []
    for part in range(1, PARTS + 1):
        last = len(by_order) * part // PARTS - 1
        figures = [_bpb(nats[stage][last], num_bytes[last]) for stage in stages]
        gain = [f"{float(figures[1]) - float(figures[0]):+.5f}"] if len(stages) == 2 and num_bytes[last] else []
        latest = f"{documents.tokens[by_order[last]]:,}"
        rows.append([f"{last + 1:,}", latest, f"{documents.phase[by_order[last]]}", *figures, *gain])
    headers = ["documents scored", "tokens of the latest", "its phase", *[NAMES[stage] for stage in stages]]
    headers += ["final minus compressed"] if len(stages) == 2 else []
    return Table("Bits per byte of what is scored so far: no preview of the score", headers, rows)


@dataclass(frozen=True)
class Difference:
    """A group minus the first in bits per byte over documents of at most `longest` tokens (None: all), and the 95 %
    interval of its bootstrap over documents; one document alone has none (low = high = change). mean: of the
    documents' own differences, in which a short one counts as much as a long one."""

    longest: int | None
    documents: int
    change: float
    low: float
    high: float
    mean: float


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
            rows.append([group.label, "all", "", "other documents: not comparable", "", ""])
        for one in found.get(group.label, []):
            name = "all" if one.longest is None else f"up to {one.longest:,}"
            figures = [f"{one.change:+.5f}", _interval(one.low, one.high), f"{one.mean:+.5f}"]
            rows.append([group.label, name, f"{one.documents:,}", *figures])
    headers = ["group", "document, tokens", "documents", f"minus {groups[0].label}, bits per byte"]
    headers += ["95 % interval, paired by document", "mean over documents"]
    return [Table("Difference by document length", headers, rows, left=2)]


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
    """candidate - base in bits per byte over the chosen documents, its interval, and the mean of the documents'."""
    if not documents.num_bytes[chosen].sum():
        return ["no bytes", "", ""]
    change, low, high, mean = _change(base, candidate, documents, chosen)
    return [f"{change:+.5f}", _interval(low, high), f"{mean:+.5f}"]


def _change(
    base: np.ndarray, candidate: np.ndarray, documents: Documents, chosen: np.ndarray
) -> tuple[float, float, float, float]:
    """candidate - base in bits per byte over the chosen documents, its interval, of no width for one document, and the
    mean of the documents' own differences, in which a short one counts as much as a long one."""
    num_bytes = documents.num_bytes[chosen]
    with_bytes = num_bytes > 0
    nats = (candidate[chosen] - base[chosen])[with_bytes]
    mean = float((nats / num_bytes[with_bytes]).mean() / math.log(2))
    try:
        found = statistics.bootstrap_documents(base[chosen], candidate[chosen], num_bytes, REPLICATES)
    except ValueError:
        change = float((candidate[chosen].sum() - base[chosen].sum()) / math.log(2) / num_bytes.sum())
        return change, change, change, mean
    return -found.gain, -found.high, -found.low, mean


def _interval(low: float, high: float) -> str:
    return "none: one document" if low == high else f"{low:+.5f} .. {high:+.5f}"


def _bpb(nats: float, num_bytes: float) -> str:
    return f"{nats / math.log(2) / num_bytes:.5f}" if num_bytes else "no bytes"

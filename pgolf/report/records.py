"""`pgolf records [NAME]`: the published results, and what this version has of each."""

from dataclasses import dataclass

from pgolf.report.catalogue import Catalogue, Proposal, Record, title
from pgolf.report.presets import Preset, gaps
from pgolf.report.tables import text_table

LIMIT_BYTES = 16_000_000
METRICS = {
    "post_ttt": "after test-time training",
    "sliding": "sliding window, no test-time training",
    "flat": "rows of the text as it comes, no test-time training",
}
FLAGS = {
    "overlap": "validation documents are among the training documents",
    "data-disputed": "whether its training data overlaps the validation set is disputed",
    "older-export": "scored on an older export of the text; on the later one the same recipe gave 1.2274 to 1.2286",
    "target-gates": "an expert of the scoring reads the token that it predicts (condition C1)",
    "over-time": "a part of the work lies outside the 600 s",
    "log-integrity": "the published logs contradict each other or themselves",
    "settings-differ": "the description and the logged settings differ; the logged ones are here",
    "seeds-left-out": "two of seven seeds that ran are not among the published ones",
    "same-seed": "all logs have the same seed, and one of them two GPUs and 2,400 s",
    "not-a-record": "published as a study, not as a record",
    "one-seed": "one seed: no spread is known",
}


@dataclass(frozen=True)
class Changes:
    """How two presets differ: (value there, value here) by dotted key."""

    parent: str
    values: dict[str, list[str]]


def render_table(catalogue: Catalogue, presets: dict[str, Preset]) -> str:
    """All records, lowest bits per byte first, and what the words in it mean."""
    ordered = sorted(catalogue.records, key=lambda record: record.mean)
    headers = ["record", "name", "flags", "here", "parity", "BPB", "std", "n", "parameters"]
    headers += ["artifact bytes", "parent"]
    rows = [
        [
            record.id,
            record.name,
            ", ".join(record.flags),
            _here(presets, record),
            _parity_word(catalogue, record),
            f"{record.mean:.5f}",
            f"{record.std:.5f}" if record.std is not None else "-",
            str(len(record.headline)),
            f"{record.parameters:,}",
            f"{record.artifact_bytes:,}" if record.artifact_bytes is not None else "-",
            record.parent or "-",
        ]
        for record in ordered
    ]
    used = [flag for flag in FLAGS if any(flag in record.flags for record in ordered)]
    parts = [
        text_table(headers, rows, left=5),
        (
            "BPB: published mean over n seeds, std: sample standard deviation (n - 1), both worked "
            "out from the logs.\nartifact bytes: weights and code of the largest seed as logged.\n"
            "here: whether there is a preset (experiment=NAME), and how many things of the published run it lacks; "
            "`pgolf records NAME` names them.\n"
            "parity: how many kinds of numbers of its own script are reproduced, else the nearest ancestor of which "
            "some are (`scripts/parity.py`)."
        ),
        "flags:\n" + "\n".join(f"  {flag}: {FLAGS[flag]}" for flag in used),
    ]
    if catalogue.proposals:
        proposed = [
            [one.id, one.name, _here(presets, one), f"{one.parameters:,}", str(len(one.seeds)), one.parent]
            for one in catalogue.proposals
        ]
        headers = ["proposal", "name", "here", "parameters", "seeds", "parent"]
        parts.append(
            "Proposals, which nobody has trained, so there is no score (seeds: named in advance):\n\n"
            + text_table(headers, proposed, left=3)
        )
    if own := sorted(presets.keys() - {one.id for one in catalogue.entries}):
        parts.append(f"Other presets: {', '.join(own)}.")
    return "\n\n".join(parts)


def _here(presets: dict[str, Preset], record: Record | Proposal) -> str:
    if record.id not in presets:
        return "-"
    missing = len(gaps(presets, record.id).missing)
    return f"all but {missing}" if missing else "all"


def _parity_word(catalogue: Catalogue, record: Record) -> str:
    nearest = catalogue.nearest_evidence(record)
    return str(len(catalogue.evidence(record.id))) if nearest == record.id else f"({nearest})" if nearest else "-"


def render_record(
    catalogue: Catalogue, record: Record, presets: dict[str, Preset], changes: Changes | None = None
) -> str:
    """One record: lineage, preset and what it lacks, parity, settings that differ from its parent, every seed.

    changes: how its preset differs from the nearest preset that it builds on.
    """
    std = f" ± {record.std:.5f}" if record.std is not None else " (one seed: no spread)"
    group = f", runs of the group {record.headline_group}" if record.headline_group else ""
    lines = [
        f"{record.title}: {record.name}",
        f"  bits per byte  {record.mean:.5f}{std}, n={len(record.headline)}{group}",
        f"  measured       {METRICS[record.metric]}",
        f"  parameters     {record.parameters:,}",
        f"  artifact       {f'at most {record.artifact_bytes:,} bytes' if record.artifact_bytes else 'not logged'}",
        f"  lineage        {' -> '.join(catalogue.lineage(record))}",
        *_preset_lines(presets, record),
        *_parity_lines(catalogue, record),
        *[f"  ! {flag}: {FLAGS[flag]}" for flag in record.flags],
    ]
    origin = title(record.parent) if record.parent else f"the settings that the {record.base} records share"
    parts = ["\n".join(lines), _delta(record, origin)]
    if record.base is not None:
        shared = [f"  {key} = {value}" for key, value in catalogue.bases[record.base].items()]
        parts.append(f"shared by the {record.base} records:\n" + "\n".join(shared))
    parts += _changed(record, changes)
    parts.append(_seeds_table(record))
    return "\n\n".join(parts)


def render_proposal(
    catalogue: Catalogue, proposal: Proposal, presets: dict[str, Preset], changes: Changes | None = None
) -> str:
    """One proposal: as `render_record`, with the seeds that it names and no figure."""
    lines = [
        f"{proposal.title}: {proposal.name}",
        "  bits per byte  none: a proposal, which nobody has trained",
        f"  seeds          {', '.join(map(str, proposal.seeds))}, named in advance",
        f"  parameters     {proposal.parameters:,}",
        f"  lineage        {' -> '.join(catalogue.lineage(proposal))}",
        *_preset_lines(presets, proposal),
    ]
    return "\n\n".join(["\n".join(lines), _delta(proposal, title(proposal.parent)), *_changed(proposal, changes)])


def _delta(record: Record | Proposal, origin: str) -> str:
    delta = [f"  {key} = {value}" for key, value in record.delta.items()] or ["  nothing"]
    return f"published settings, changed from {origin}:\n" + "\n".join(delta)


def _changed(record: Record | Proposal, changes: Changes | None) -> list[str]:
    if changes is None:
        return []
    changed = [f"  {key}: {' -> '.join(values)}" for key, values in changes.values.items()] or ["  nothing"]
    return [f"experiment={record.id}, changed from experiment={changes.parent}:\n" + "\n".join(changed)]


def _preset_lines(presets: dict[str, Preset], record: Record | Proposal) -> list[str]:
    if record.id not in presets:
        return ["  preset         none in this version"]
    found = gaps(presets, record.id)
    return [
        f"  preset         experiment={record.id}",
        *[f"  missing        {one}" for one in found.missing],
        *[f"  differs        {one}" for one in found.differs],
    ]


def _parity_lines(catalogue: Catalogue, record: Record) -> list[str]:
    nearest = catalogue.nearest_evidence(record)
    if nearest is None:
        return ["  parity         none: not checked in this version"]
    note = "" if nearest == record.id else f" [of {nearest}]"
    return [f"  parity         {one.what} ({one.cases}*){note}" for one in catalogue.evidence(nearest)]


def _seeds_table(record: Record) -> str:
    columns = (
        ("group", "group", "{}"),
        ("seed", "seed", "{}"),
        ("steps", "steps", "{:,}"),
        ("train s", "train_seconds", "{:.1f}"),
        ("trained BPB", "pre_quant_bpb", "{:.5f}"),
        ("compressed BPB", "post_quant_bpb", "{:.5f}"),
        ("final BPB", "bpb", "{:.5f}"),
        ("eval s", "eval_seconds", "{:.1f}"),
        ("artifact bytes", "artifact_bytes", "{:,}"),
        ("left of limit", "left", "{:,}"),
    )
    shown = columns if any(run.get("group") for run in record.runs) else columns[1:]
    rows = []
    for run in record.runs:
        figures = dict(run)
        if "artifact_bytes" in run:
            figures["left"] = LIMIT_BYTES - run["artifact_bytes"]
        rows.append([form.format(figures[key]) if key in figures else "-" for _, key, form in shown])
    return text_table([title for title, _, _ in shown], rows)

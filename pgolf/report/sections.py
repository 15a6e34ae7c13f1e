"""The tables of a report: headers and rows of text, ready for Markdown or HTML."""

from dataclasses import dataclass
from typing import Any

from pgolf.report import statistics
from pgolf.report.comparison import Group
from pgolf.report.configuration import difference
from pgolf.report.runs import Problem, Run, figure

STAGE_NAMES = (("pre_quant", "trained"), ("post_quant", "compressed"), ("final", "final"))


@dataclass(frozen=True)
class Table:
    """One table; the first `left` columns hold words, the others numbers. selectable: rows are runs to show."""

    title: str
    headers: list[str]
    rows: list[list[str]]
    left: int = 1
    selectable: bool = False


def groups_table(groups: list[Group]) -> Table:
    """One row per group: bits per byte over its seeds, nats, parameters, bytes, seconds."""
    rows = []
    for group in groups:
        sample = statistics.summarise(list(group.bpb.values()))
        nats = statistics.summarise(list(group.nats(group.bytes_per_token).values()))
        one_seed = "one seed"
        interval = one_seed
        if sample.low is not None and sample.high is not None:
            interval = f"{sample.low:.5f} .. {sample.high:.5f}"
        rows.append(
            [
                group.label,
                str(sample.n),
                ", ".join(map(str, group.bpb)),
                f"{sample.mean:.5f}",
                one_seed if sample.std is None else f"{sample.std:.5f}",
                interval,
                f"{nats.mean:.5f}",
                _largest(group, "model.parameters"),
                _largest(group, "artifact.total_bytes"),
                _fits(group),
                _largest(group, "train.seconds", digits=1),
            ]
        )
    headers = ["group", "n", "seeds", "val_bpb mean", "std", "95 % interval", "nats per token"]
    headers += ["parameters", "artifact bytes (worst seed)", "fits (worst seed)", "train seconds (longest)"]
    return Table("Groups (runs that differ by their seed alone)", headers, rows)


def _largest(group: Group, key: str, digits: int = 0) -> str:
    values = [value for run in group.runs if (value := figure(run.summary, key)) is not None]
    return f"{max(values):,.{digits}f}" if values else "not recorded"


def _fits(group: Group) -> str:
    answers = {run.summary.get("artifact", {}).get("fits") for run in group.runs}
    if answers == {True}:
        return "yes"
    return "NO" if False in answers else "not recorded"


def runs_table(groups: list[Group]) -> Table:
    """One row per run: its stages, bytes and the verdict of its audit."""
    rows = []
    for group in groups:
        for run in group.runs:
            stages = [_shown(figure(run.summary, f"stages.{key}.val_bpb"), 5) for key, _ in STAGE_NAMES]
            total = _shown(figure(run.summary, "artifact.total_bytes"), 0)
            verdict = str(run.summary.get("audit", {}).get("verdict", "not audited"))
            folder = run.directory.name
            rows.append([group.label, folder, str(run.seed), *stages, total, verdict])
    headers = ["group", "run", "seed", *[f"{name} BPB" for _, name in STAGE_NAMES]]
    return Table("Runs", [*headers, "artifact bytes", "audit"], rows, left=2, selectable=True)


def stages_table(run: Run) -> Table:
    """Every stage of one run in both units, with the tokens and bytes behind the figures."""
    rows = []
    for key, name in STAGE_NAMES:
        values = [figure(run.summary, f"stages.{key}.{one}") for one in ("val_bpb", "val_loss")]
        if values[0] is None:
            continue
        counts = [figure(run.summary, f"stages.{key}.{one}") for one in ("tokens", "bytes")]
        seconds = _shown(figure(run.summary, f"stages.{key}.seconds"), 1)
        shown = [_shown(value, 6) for value in values] + [_shown(value, 0) for value in counts]
        rows.append([name, *shown, seconds])
    headers = ["stage", "bits per byte", "nats per token", "tokens", "bytes", "seconds"]
    return Table("Stages", headers, rows)


def audit_table(run: Run) -> Table | None:
    """The checks of the audit of one run, None when it was not audited."""
    checks: list[dict[str, Any]] = run.summary.get("audit", {}).get("checks") or []
    rows = [
        [
            str(check.get("id", "")),
            str(check.get("name", "")),
            str(check.get("verdict", "")),
            str(check.get("detail", "")),
            str(check.get("probed", "")),
            str(check.get("largest", "")),
        ]
        for check in checks
    ]
    headers = ["id", "check", "verdict", "detail", "probed", "largest deviation"]
    return Table("Audit", headers, rows, left=4) if rows else None


def samples_table(run: Run) -> Table | None:
    """The texts that the model wrote, None when there are none."""
    samples = run.summary.get("samples") or []
    rows = [[str(one.get("prompt", "")), str(one.get("text", ""))] for one in samples]
    return Table("Samples", ["prompt", "text"], rows, left=2) if rows else None


def identity_table(run: Run) -> Table:
    """What ran: hashes, machine, versions."""
    keys = ("digest", "config_hash", "code_hash", "data_digest", "world_size", "device")
    rows = [[key, str(run.identity.get(key, "not recorded"))] for key in (*keys, "torch", "python", "platform")]
    return Table("Identity", ["key", "value"], [*rows, ["directory", str(run.directory)]], left=2)


def difference_table(groups: list[Group]) -> Table | None:
    """The configuration keys in which the groups differ, None for one group."""
    if len(groups) < 2:
        return None
    differing = difference([group.runs[0].config for group in groups])
    rows = [[key, *values] for key, values in differing.items()]
    if not rows:
        rows = [["no difference", *[""] * len(groups)]]
    headers = ["key", *[group.label for group in groups]]
    return Table("Configuration difference", headers, rows, left=len(headers))


def problems_table(problems: list[Problem]) -> Table | None:
    """Runs that do not count, with reasons; None when every run counts."""
    rows = [[str(problem.directory), problem.reason] for problem in problems]
    return Table("Not counted", ["directory", "reason"], rows, left=2) if rows else None


def _shown(value: float | None, digits: int) -> str:
    return "not recorded" if value is None else f"{value:,.{digits}f}"

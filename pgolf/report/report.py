"""`pgolf report DIR ...`: plots, a Markdown table and one HTML page about runs."""

import argparse
from pathlib import Path

from pgolf.errors import UserError
from pgolf.files import write_bytes
from pgolf.report import (
    adaptation,
    curves,
    learned,
    lipschitz,
    overview,
    plots,
    schedule,
    scores,
    sections,
    settings,
    turns,
)
from pgolf.report.comparability import check_denominator
from pgolf.report.comparison import Group, make_groups
from pgolf.report.page import Section, render_page
from pgolf.report.runs import Found, Run, find_runs
from pgolf.report.sections import Table
from pgolf.report.tables import markdown_table


def main(argv: list[str] | None = None) -> int:
    """Write the report of some runs; returns the exit status."""
    arguments = _parser().parse_args(argv)
    found = find_runs(arguments.directory)
    if not found.runs:
        reasons = "; ".join(f"{one.directory}: {one.reason}" for one in found.problems)
        raise UserError(f"there is no finished run to report on ({reasons}).")
    out = arguments.out or arguments.directory[0] / "report"
    written = write_report(found, out, arguments.every_run)
    for problem in found.problems:
        print(f"not counted: {problem.directory}: {problem.reason}")
    for path in written:
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgolf report",
        description="Draw the plots of runs and write report.html (opens offline) and report.md.",
    )
    parser.add_argument("directory", type=Path, nargs="+", metavar="DIR", help="run directory or folder of runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: report/ in the first DIR)")
    parser.add_argument(
        "--every-run",
        action="store_true",
        help="plots of every run; without it, of the first seed of each group",
    )
    return parser


def write_report(found: Found, out: Path, every_run: bool = False) -> list[Path]:
    """Write plots, report.md and report.html into `out`; returns what was written, page first."""
    groups = make_groups(found.groups())
    overview = _overview(groups, found, out)
    details = []
    for number, group in enumerate(groups, 1):
        for run in group.runs if every_run else group.runs[:1]:
            details.append(_detail(run, group, out, f"{number}-seed{run.seed}", every_run))
    all_sections = [overview, *details]
    title = "pgolf: " + (groups[0].label if len(groups) == 1 else f"{len(groups)} groups of runs")
    counted = len(found.runs)
    lead = f"{counted} finished run(s), {len(found.problems)} not counted."
    page, text = out / "report.html", out / "report.md"
    write_bytes(page, render_page(title, lead, all_sections).encode())
    write_bytes(text, _markdown(title, lead, overview).encode())
    return [page, text, *[path for section in all_sections for path, _ in section.images]]


def _overview(groups: list[Group], found: Found, out: Path) -> Section:
    section = Section("Results")
    section.warnings = [text for run in found.runs if (text := check_denominator(run))]
    digests = {run.data_digest for run in found.runs}
    if len(digests) > 1:
        section.warnings.append(
            f"These runs scored {len(digests)} different data sets: their bits per byte cannot be "
            "compared with each other."
        )
    tables = [
        sections.groups_table(groups),
        sections.runs_table(groups),
        overview.seconds_table(groups),
        *scores.length_comparison(groups),
        sections.difference_table(groups),
        sections.problems_table(found.problems),
    ]
    section.tables = [table for table in tables if table]
    curves_of_all = curves.loss_curves(groups)
    if curves_of_all:
        section.drawings = [("Training loss of every run, smoothed", curves_of_all)]
    images: list[tuple[Path | None, str]] = []
    if len(found.runs) > 1:
        path = plots.group_bpb(groups, out / "groups.png")
        images.append((path, "Final bits per byte of every group, seeds as dots"))
        path_stages = overview.stages(groups, out / "stages.png")
        images.append((path_stages, "Bits per byte of every group through the stages"))
        path_lengths = overview.by_length(groups, out / "lengths.png") if len(groups) > 1 else None
        images.append((path_lengths, "Difference from the first group by document length"))
    path_loss = plots.training_loss(groups, out / "training_loss.png")
    images.append((path_loss, "Training loss over steps"))
    path_size = plots.artifact_bytes(groups, out / "artifact_bytes.png")
    images.append((path_size, "Artifact bytes against the limit"))
    path_seconds = overview.seconds(groups, out / "seconds.png")
    images.append((path_seconds, "Seconds of training and scoring against the limits"))
    section.images = [(path, text) for path, text in images if path]
    for run in found.runs:
        section.warnings.extend(run.events()[1])
    return section


def _detail(run: Run, group: Group, out: Path, stem: str, every_run: bool) -> Section:
    others = "" if every_run or len(group.runs) == 1 else ", the first seed of its group"
    section = Section(f"{group.label}, seed {run.seed}{others}")
    tables = [
        sections.stages_table(run),
        *scores.tables(run),
        turns.turns_table(run),
        sections.audit_table(run),
        sections.identity_table(run),
        sections.samples_table(run),
    ]
    section.tables = [table for table in tables if table]
    if others:
        section.warnings.append(
            f"{len(group.runs) - 1} more seed(s) of this group are in the tables above; "
            "--every-run draws their plots too."
        )
    section.warnings.extend(filter(None, [adaptation.no_preview(run)]))
    section.warnings.extend(f"Planned and never reached: {text}." for text in settings.never_happened(run))
    section.warnings.extend(turns.dead_parameters(run))
    drawn = [
        (plots.stage_bpb(run, out / f"stages-{stem}.png"), "Bits per byte of every stage"),
        (schedule.schedule(run, out / f"schedule-{stem}.png"), "Learning rate and recurrence switch"),
        (settings.settings(run, out / f"settings-{stem}.png"), "Every schedule, planned and actual"),
        (turns.loss_with_turns(run, out / f"events-{stem}.png"), "Training loss and the events of the schedules"),
        (learned.learned(run, out / f"learned-{stem}.png"), "Learned gains, scales and gates over steps"),
        (turns.passes(run, out / f"passes-{stem}.png"), "Cosine between repeated passes"),
        (lipschitz.lipschitz(run, out / f"lipschitz-{stem}.png"), "Named terms of the Lipschitz accounting"),
        (_documents(run, out / f"documents-{stem}.png", section), "Documents over their length"),
        (adaptation.trajectory(run, out / f"adaptation-{stem}.png"), "Score and gain against seconds of scoring"),
        (plots.stage_seconds(run, out / f"seconds-{stem}.png"), "Seconds per stage"),
    ]
    section.images = [(path, text) for path, text in drawn if path]
    return section


def _documents(run: Run, path: Path, section: Section) -> Path | None:
    try:
        return adaptation.document_bpb(run.documents(), path)
    except UserError as error:
        section.warnings.append(f"No plot of the documents: {error}")
        return None


def _markdown(title: str, lead: str, overview: Section) -> str:
    parts = [f"# {title}", lead, *[f"> {text}" for text in overview.warnings]]
    for table in overview.tables:
        parts.append(_markdown_section(table))
    return "\n\n".join(parts) + "\n"


def _markdown_section(table: Table) -> str:
    return f"## {table.title}\n\n" + markdown_table(table.headers, table.rows, table.left)

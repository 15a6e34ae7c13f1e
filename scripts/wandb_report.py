"""A comparison as a Weights & Biases report, built from run directories as code.

The text and the statistics come from the run directories, as in `pgolf compare`; the curves come from the wandb project
that the runs were sent to (`track=wandb`, or `wandb sync RUN/wandb/offline-run-*` afterwards). The first argument is
the base.

Needs `pip install "pgolf[track]"` and, to publish, `wandb login`. With --dry-run nothing is sent: the
text of the report is printed.

  python scripts/wandb_report.py multirun/base-* multirun/cand-* --project pgolf --title "Does the gate help?"
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pgolf.app.tracking import group_name
from pgolf.errors import UserError
from pgolf.report import compare
from pgolf.report.comparison import Comparison, Group, compare_groups, make_groups
from pgolf.report.runs import find_runs
from pgolf.report.sections import difference_table, groups_table
from pgolf.report.tables import markdown_table

LINES = (
    ("Training loss, nats per token", "step/train_loss"),
    ("Learning rate scale", "step/lr_scale"),
    ("Gradient norm", "step/grad_norm"),
)
BARS = (
    ("Bits per byte, final", "val_bpb"),
    ("Bits per byte before quantisation", "stages.pre_quant.val_bpb"),
    ("Artifact, bytes", "artifact.total_bytes"),
    ("Training, seconds", "train.seconds"),
)


def main(argv: list[str] | None = None) -> int:
    """Build the report and publish it as a draft; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        found = find_runs(arguments.directory)
        groups = make_groups(found.groups())
        if not groups:
            raise UserError("there is no finished run in the given directories.")
        comparisons = [compare_groups(groups[0], one) for one in groups[1:]]
        if arguments.dry_run:
            print("\n\n".join(text for _, text in texts(groups, comparisons)))
            return 0
        _require_login()
        report = build(groups, comparisons, arguments.project, arguments.entity, arguments.title)
        report.save(draft=True)
    except UserError as error:
        print(f"wandb_report: {error}", file=sys.stderr)
        return 2
    print(report.url)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="+", help="run directories or folders of them; the base first")
    parser.add_argument("--project", default="pgolf", help="wandb project of the runs (default: %(default)s)")
    parser.add_argument("--entity", help="wandb user or team (default: yours)")
    parser.add_argument("--title", default="pgolf: comparison", help="title of the report")
    parser.add_argument("--dry-run", action="store_true", help="print the text; needs neither wandb nor a network")
    return parser


def _require_login() -> None:
    try:
        import wandb
    except ImportError as error:
        raise UserError('publishing needs wandb: pip install "pgolf[track]"') from error
    if not wandb.api.api_key:
        raise UserError("nobody is logged in to Weights & Biases here: run `wandb login`, or look with --dry-run.")


def texts(groups: list[Group], comparisons: list[Comparison]) -> list[tuple[str, str]]:
    """(heading, Markdown) of every written part."""
    parts = [("Results", _table(groups_table(groups)))]
    if comparisons:
        parts.append(("Verdict", f"```\n{compare.render(groups[0], comparisons, compare.statistics.MARGIN_NATS)}\n```"))
    difference = difference_table(groups)
    if difference is not None and difference.rows:
        parts.append(("What differs", _table(difference)))
    return parts


def build(groups: list[Group], comparisons: list[Comparison], project: str, entity: str | None, title: str) -> Any:
    """The report as a `wandb_workspaces.reports.v2.Report`: texts, then curves and bars with one run set a recipe."""
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError as error:
        raise UserError('publishing needs wandb-workspaces: pip install "pgolf[track]"') from error
    place: dict[str, Any] = {"project": project} | ({"entity": entity} if entity else {})
    sets = [reports.Runset(name=group.label, filters=f"Group == '{_wandb_group(group)}'", **place) for group in groups]
    panels: list[Any] = [
        reports.LinePlot(title=title, x="step/step", y=[key], smoothing_factor=0.8) for title, key in LINES
    ]
    panels += [reports.BarPlot(title=title, metrics=[key]) for title, key in BARS]
    blocks: list[Any] = [reports.TableOfContents()]
    for heading, text in texts(groups, comparisons):
        blocks += [reports.H2(text=heading), reports.MarkdownBlock(text=text)]
    blocks += [reports.H2(text="Curves"), reports.PanelGrid(runsets=sets, panels=panels)]
    description = (
        f"{len(groups)} recipes, {sum(len(group.runs) for group in groups)} runs; the base is {groups[0].label}"
    )
    return reports.Report(title=title, description=description, blocks=blocks, **place)


def _wandb_group(group: Group) -> str:
    return group_name(group.runs[0].config, group.digest)


def _table(table: Any) -> str:
    return markdown_table(table.headers, table.rows)


if __name__ == "__main__":
    sys.exit(main())

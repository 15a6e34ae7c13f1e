"""`pgolf records [NAME]`: the published results, their presets, and what this version has of them."""

import argparse
from pathlib import Path

from pgolf.app import check
from pgolf.app.verbs.composing import composed, parser
from pgolf.errors import UserError
from pgolf.report.catalogue import Catalogue, Proposal, Record, load_catalogue
from pgolf.report.configuration import difference
from pgolf.report.lineage import render_tree
from pgolf.report.presets import preset_directory, read_presets
from pgolf.report.records import Changes, render_proposal, render_record, render_table

DESCRIPTION = """\
The published results: figures, lineage, presets and what these lack, parity evidence; and the proposals, which have no
score. With a NAME (pr1736, 1736, naive) one of them in full, with the settings that its preset changes."""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("records", DESCRIPTION, "[NAME]").parse_args(arguments)
    if len(options.words) > 1:
        raise UserError(f"one record at a time: {', '.join(options.words)}.")
    catalogue = load_catalogue()
    presets = read_presets(preset_directory())
    own = Path(options.config_dir) / "experiment" if options.config_dir else None
    if own is not None and own.is_dir():
        presets = read_presets(own) | presets  # a shipped one comes before one's own, as in composing
    if not options.words:
        print(render_table(catalogue, presets))
        print("\nlineage (* has a preset here; BPB and its change from the parent):\n")
        print(render_tree(catalogue, presets.__contains__))
        return 0
    record = catalogue.published(options.words[0])
    changes = _changes(catalogue, record, set(presets), options)
    if isinstance(record, Proposal):
        print(render_proposal(catalogue, record, presets, changes))
    else:
        print(render_record(catalogue, record, presets, changes))
    return 0


def _changes(
    catalogue: Catalogue, record: Record | Proposal, presets: set[str], options: argparse.Namespace
) -> Changes | None:
    """What the preset of a record sets otherwise than that of its nearest ancestor; None where one is missing."""
    ancestors = [name for name in catalogue.lineage(record)[:-1] if name in presets]
    if record.id not in presets or not ancestors:
        return None
    jobs = [composed([f"experiment={name}"], options)[0] for name in (ancestors[-1], record.id)]
    check.require_composed(jobs)
    return Changes(ancestors[-1], difference([job.config for job in jobs]))

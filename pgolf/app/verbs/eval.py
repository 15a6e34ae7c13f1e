"""`pgolf eval run=DIR [overrides]`: score a finished run again without training."""

from pgolf.app.verbs.composing import parser, refuse_words, take
from pgolf.digest import SHORT, digest
from pgolf.errors import UserError

DESCRIPTION = """\
Score a finished run again, with another strategy, other quantisation or other probes, without
training. Overrides of quant start from the weights before quantisation, all others from the
artifact. The result lands in DIR/eval-<digest>; the same command again skips it (force=true does
it again).
checkpoint=FILE instead of run=DIR: the weights of a published script (final_model.pt, a state dict), with any
overrides; they become a run directory below paths.runs, which is quantised, packed, scored and audited.

examples:
  pgolf eval run=runs/default-1a2b3c4d-seed42 ttt=sliding
  pgolf eval run=runs/default-1a2b3c4d-seed42 quant.matrix.bits=5 quant.coder=brotli
  pgolf eval run=runs/default-1a2b3c4d-seed42 quant=trellis quant.target_bytes=300000
  pgolf eval run=runs/default-1a2b3c4d-seed42 --multirun 'quant=glob(*)'
  pgolf eval checkpoint=final_model.pt experiment=pr1736"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("eval", DESCRIPTION, "run=DIR|checkpoint=FILE [--multirun] [key=value ...]")
    made.add_argument("--multirun", "-m", action="store_true", help="score every combination of the overrides")
    options = made.parse_intermixed_args(arguments)
    run, overrides = take(options.words, "run")
    file, overrides = take(overrides, "checkpoint")
    refuse_words(overrides)
    if (run is None) == (file is None):
        raise UserError(
            "pgolf eval needs a run or a checkpoint: pgolf eval run=DIR [overrides], or checkpoint=FILE [overrides]."
        )
    if file is not None and options.multirun:
        raise UserError("a sweep starts from a run: evaluate the checkpoint once, then its run directory as run=DIR.")
    from pgolf.app import sweep
    from pgolf.app.launch import Request, carry_out
    from pgolf.app.verbs.imported import is_imported, run_of_checkpoint
    from pgolf.app.verbs.rerun import changeable, open_sources

    if run is None:
        assert file is not None  # one of the two is there
        run = str(run_of_checkpoint(file, overrides, options))
        overrides = changeable(overrides)  # the others are those of the run that it became
    requests = []
    for source in open_sources(run, overrides, options, options.multirun):
        directory = source.directory / f"eval-{digest(source.config)[:SHORT]}"
        again = "quant" in source.changed or is_imported(source.directory)
        requests.append(
            Request(source.config, source.overrides, directory, source.directory, again, swept=options.multirun)
        )
    return sweep.one_by_one(requests) if options.multirun else carry_out(requests[0]).exit_status

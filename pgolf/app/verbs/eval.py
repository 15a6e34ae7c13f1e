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
  pgolf eval checkpoint=final_model.pt experiment=pr1736"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("eval", DESCRIPTION, "run=DIR|checkpoint=FILE [key=value ...]").parse_args(arguments)
    run, overrides = take(options.words, "run")
    file, overrides = take(overrides, "checkpoint")
    refuse_words(overrides)
    if (run is None) == (file is None):
        raise UserError(
            "pgolf eval needs a run or a checkpoint: pgolf eval run=DIR [overrides], or checkpoint=FILE [overrides]."
        )
    from pgolf.app.launch import Request, carry_out
    from pgolf.app.verbs.imported import is_imported, run_of_checkpoint
    from pgolf.app.verbs.rerun import changeable, open_source

    if run is None:
        assert file is not None  # one of the two is there
        run = str(run_of_checkpoint(file, overrides, options))
        overrides = changeable(overrides)  # the others are those of the run that it became
    source = open_source(run, overrides, options)
    directory = source.directory / f"eval-{digest(source.config)[:SHORT]}"
    request = Request(
        source.config,
        overrides,
        directory,
        source=source.directory,
        requantise="quant" in source.changed or is_imported(source.directory),
    )
    return carry_out(request).exit_status

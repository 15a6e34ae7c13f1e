"""`pgolf eval run=DIR [overrides]`: score a finished run again without training."""

from pgolf.app.verbs.composing import parser, refuse_words, take
from pgolf.digest import SHORT, digest
from pgolf.errors import UserError

DESCRIPTION = """\
Score a finished run again, with another strategy, other quantisation or other probes, without
training. Overrides of quant start from the weights before quantisation, all others from the
artifact. The result lands in DIR/eval-<digest>; the same command again skips it (force=true does
it again).

examples:
  pgolf eval run=runs/default-1a2b3c4d-seed42 ttt=sliding
  pgolf eval run=runs/default-1a2b3c4d-seed42 quant.matrix.bits=5 quant.coder=brotli"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("eval", DESCRIPTION, "run=DIR [key=value ...]").parse_args(arguments)
    run, overrides = take(options.words, "run")
    refuse_words(overrides)
    if run is None:
        raise UserError("pgolf eval needs a run: pgolf eval run=DIR [overrides].")
    from pgolf.app.launch import Request, carry_out
    from pgolf.app.verbs.rerun import open_source

    source = open_source(run, overrides, options)
    directory = source.directory / f"eval-{digest(source.config)[:SHORT]}"
    request = Request(
        source.config,
        overrides,
        directory,
        source=source.directory,
        requantise="quant" in source.changed,
    )
    return carry_out(request).exit_status

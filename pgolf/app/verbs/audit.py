"""`pgolf audit [run=DIR | overrides]`: the probes of the validity conditions."""

from pgolf.app import build, table
from pgolf.app.verbs.composing import compose, parser, refuse_words, take

DESCRIPTION = """\
Probe the validity conditions of a strategy: no score depends on later text, every distribution is
complete, scores come before updates, one pass, every byte counted. With run=DIR the run's artifact
is probed; without, an untrained model of the configuration (the probes test the procedure, not the
score).
The exit status is 1 when a check fails.

examples:
  pgolf audit run=runs/default-1a2b3c4d-seed42
  pgolf audit ttt=phased ttt.phases=2"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    options = parser("audit", DESCRIPTION, "[run=DIR] [key=value ...]").parse_args(arguments)
    run, overrides = take(options.words, "run")
    refuse_words(overrides)
    if run is None:
        config, directory = compose(overrides, options).config, None
    else:
        from pgolf.app.verbs.rerun import open_source

        source = open_source(run, overrides, options)
        config, directory = source.config, source.directory
    from pgolf import distributed
    from pgolf.app.console import Screen
    from pgolf.run import audit_run

    screen = Screen()
    result = audit_run(build.recipe(config), directory, distributed.alone(), screen)
    screen.tables([table.audit_table(result)])
    return 1 if result["verdict"] == "fail" else 0

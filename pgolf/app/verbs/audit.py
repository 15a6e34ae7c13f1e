"""`pgolf audit [run=DIR | overrides]`: the probes of the validity conditions, and the audit of the audit."""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.app import build, table
from pgolf.app.verbs.composing import compose, parser, refuse_words, take

if TYPE_CHECKING:
    from pgolf.app.console import Screen

DESCRIPTION = """\
Probe the validity conditions of a strategy: no score depends on later text, every distribution is
complete, scores come before updates, one pass, every byte counted, the same on two processes, and
an artifact that never saw the validation text. With run=DIR the run's artifact is probed; without,
an untrained model of the configuration at scale=mini on the embedded corpus, unless the command
line says otherwise (the probes test the procedure, not the score).
The exit status is 1 when a check fails.

examples:
  pgolf audit run=runs/default-1a2b3c4d-seed42
  pgolf audit ttt=phased ttt.phases=2
  pgolf audit experiment=pr1736 --json audit.json
  pgolf audit --config-dir my_conf ttt=mine allow_targets=[my_package]
  pgolf audit --self-test"""
DEFAULTS = {"scale": "mini", "data": "pydocs"}


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("audit", DESCRIPTION, "[run=DIR] [key=value ...] [--json FILE] [--self-test]")
    made.add_argument("--json", metavar="FILE", type=Path, help="write the result there too, as JSON")
    made.add_argument(
        "--self-test",
        action="store_true",
        help="try known-bad procedures, each of which must fail its own check, and legal ones, which may fail none",
    )
    options = made.parse_args(arguments)
    from pgolf.app.console import Screen

    screen = Screen()
    if options.self_test:
        result = _self_test(options, screen)
        screen.tables([table.self_test_table(result)])
    else:
        result = _audit(options, screen)
        screen.tables([table.audit_table(result)])
    if options.json is not None:
        from pgolf.files import write_json

        write_json(options.json, result)
        screen.say(f"written to {options.json}")
    return 1 if result["verdict"] == "fail" else 0


def _audit(options: argparse.Namespace, screen: "Screen") -> dict[str, Any]:
    run, overrides = take(options.words, "run")
    refuse_words(overrides)
    if run is None:
        given = {word.partition("=")[0] for word in overrides}
        own = options.config_path is not None  # another configuration has other groups
        added = [] if own else [f"{key}={value}" for key, value in DEFAULTS.items() if key not in given]
        if added:
            screen.say(f"no run given: an untrained model is probed, with {' '.join(added)}")
        config, directory = compose([*added, *overrides], options).config, None
    else:
        from pgolf.app.verbs.rerun import open_source

        source = open_source(run, overrides, options)
        config, directory = source.config, source.directory
    if config.get("allow_targets"):
        screen.say(f"allow_targets: code of {', '.join(config['allow_targets'])} is run.")
    from pgolf import distributed
    from pgolf.run import audit_run

    return audit_run(build.recipe(config), directory, distributed.alone(), screen)


def _self_test(options: argparse.Namespace, screen: "Screen") -> dict[str, Any]:
    if options.words:
        from pgolf.errors import ConfigError

        raise ConfigError(
            [f"{word}: --self-test tries its own procedures and takes no overrides" for word in options.words]
        )
    from pgolf.audit.selftest import self_test

    with tempfile.TemporaryDirectory() as workplace:
        return self_test(Path(workplace), screen)

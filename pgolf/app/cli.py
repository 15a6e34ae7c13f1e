"""The command line: verbs, and the Hydra application that trains and scores."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from pgolf import __version__
from pgolf.app.machine import prepare_process
from pgolf.app.verbs import SUMMARIES
from pgolf.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pgolf.app.compose import Composer, Job

BROKEN_PIPE = 141  # what a shell reports for a process that SIGPIPE ended
HYDRA_SHOWS = ("help", "hydra_help", "cfg", "info", "shell_completion")


def main() -> None:
    """Run the command line of this process and exit with its status."""
    prepare_process()
    arguments = sys.argv[1:]
    if arguments[:1] in (["--multirun"], ["-m"]) and arguments[1:2] and arguments[1] in SUMMARIES:
        arguments[:2] = arguments[1::-1]  # `pgolf --multirun eval ...` is `pgolf eval --multirun ...`
    try:
        if arguments and arguments[0] in SUMMARIES:
            verb = importlib.import_module(f"pgolf.app.verbs.{arguments[0]}")
            status = int(verb.main(arguments[1:]))
        elif "--version" in arguments:
            print(f"pgolf {__version__}")
            status = 0
        else:
            status = application(arguments)
    except UserError as error:
        status = refuse(error)
    except BrokenPipeError:
        from pgolf.app.console import close_output

        close_output()
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted.", file=sys.stderr)
        status = 130
    sys.exit(status)


def refuse(error: UserError) -> int:
    """Print what the user can mend, once under torchrun, and give the exit status."""
    if os.environ.get("RANK", "0") == "0":
        if isinstance(error, ConfigError):
            number = len(error.problems)
            print(
                f"pgolf: {number} problem{'s' * (number > 1)} in the configuration; nothing was started.",
                file=sys.stderr,
            )
            for problem in error.problems:
                print(f"  - {problem}", file=sys.stderr)
        else:
            print(f"pgolf: {error}", file=sys.stderr)
    return error.exit_status


def application(arguments: list[str]) -> int:
    """`pgolf [overrides]`: refuse a wrong command line, then let Hydra start the job or sweep."""
    from hydra._internal.utils import get_args_parser

    options = get_args_parser().parse_args(arguments)
    from pgolf.app import check, compose
    from pgolf.app.unread import replaced_by_scale

    directory = compose.resolve_directory(options.config_path)
    composer = compose.composer(options.config_dir, directory, options.config_name or "config")
    _refuse_words(options.overrides)
    if any(getattr(options, name) for name in HYDRA_SHOWS):
        with composer as made:
            check.require_composed(made.jobs(options.overrides, False))
        _hydra(made)
        return 0
    multirun = bool(options.multirun)
    if multirun and "LOCAL_RANK" in os.environ:
        raise UserError(
            "a sweep cannot run under torchrun: start it as `pgolf --multirun ...`; "
            "every job then gets launch.nproc processes of its own."
        )
    from pgolf.app import sweep

    if multirun:
        sys.argv[1:] = sweep.seeds_first(arguments)
        options.overrides = sweep.seeds_first(options.overrides)
    with composer as made:
        jobs = made.jobs(options.overrides, multirun)
    check.require_valid(jobs)
    for remark in dict.fromkeys(replaced_by_scale(job) for job in jobs):
        if remark is not None and os.environ.get("RANK", "0") == "0":
            print(remark)
    _require_references(jobs)
    _require_places(jobs, "hydra.sweep.dir" if multirun else "paths.runs")
    if not multirun:
        _hydra(made)
        return 0
    planned = sweep.plan(jobs)
    return sweep.finish(planned, _hydra_status(made))


def _require_references(jobs: list["Job"]) -> None:
    """ConfigError for a run that a job is watched against and that is none, before data are prepared for it."""
    from pgolf.app.build import build
    from pgolf.train.early_stop import BehindReference

    problems: dict[str, None] = {}
    for job in jobs:
        watch = build(job.config["train"].get("early_stop"), "train.early_stop")
        try:
            if isinstance(watch, BehindReference):
                watch.refuse()
        except ValueError as error:
            problems[f"train.early_stop.{error}"] = None
    if problems:
        raise ConfigError(list(problems))


def _require_places(jobs: list["Job"], key: str) -> None:
    """Make the parents of the run directories, or say what hinders; Hydra would show a traceback."""
    for parent in dict.fromkeys(job.directory.parent for job in jobs):
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason: str | None = error.strerror
        else:
            reason = None if os.access(parent, os.W_OK | os.X_OK) else "it is not writable"
        if reason is not None:
            raise UserError(
                f"cannot make run directories in {parent}: {reason}. Set {key} to a folder that can be written."
            )


def _refuse_words(overrides: list[str]) -> None:
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            from pgolf.app.signature import nearest

            raise ConfigError(
                [
                    f"{word} (command line): neither key=value nor a verb"
                    f"{nearest(word, SUMMARIES) or '.'} The verbs are {', '.join(SUMMARIES)}"
                ]
            )


def _hydra_status(made: "Composer") -> int:
    try:
        _hydra(made)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _hydra(made: "Composer") -> None:
    import hydra

    from pgolf.app.compose import config_directory
    from pgolf.app.launch import task

    decorate: Any = hydra.main(config_path=str(config_directory()), config_name="config", version_base="1.3")
    with made.loader.serving_hydra():
        decorate(task)()

"""`pgolf plan [sweep overrides]`: what a study costs, before it starts."""

from collections.abc import Iterator
from pathlib import Path

from pgolf.app.console import Screen
from pgolf.app.verbs.composing import compose_all, parser, refuse_words
from pgolf.digest import digest, group_digest
from pgolf.errors import UserError
from pgolf.files import read_json

DESCRIPTION = """\
Count the jobs of a sweep and what they cost: jobs x seconds x price. The seconds are those of
finished runs of the same configuration (any seed) in the run folders, or --seconds; without either
it says so.

examples:
  pgolf plan seed=42,0,1234 ttt=none,phased
  pgolf plan seed=42,0,1234 scale=full --seconds 1500 --price 20"""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    made = parser("plan", DESCRIPTION, "[key=value ...] [--seconds S] [--price P]")
    made.add_argument("--multirun", "-m", action="store_true", help="accepted; a plan is always of a sweep")
    made.add_argument("--seconds", type=float, help="seconds of one job, where no finished run tells")
    made.add_argument("--price", type=float, help="price of one hour of the machine")
    options = made.parse_args(arguments)
    refuse_words(options.words)
    jobs = compose_all(options.words, options, multirun=True)
    folders = {job.directory.parent for job in jobs} | {Path(job.config["paths"]["runs"]) for job in jobs}
    known = dict(_finished(folders))
    screen = Screen()
    total, unknown, done = 0.0, 0, 0
    for job in jobs:
        seconds, source = _estimate(group_digest(job.config), known, options.seconds)
        finished = _is_done(job.directory, digest(job.config))
        done += finished
        unknown += seconds is None and not finished
        total += 0.0 if finished else seconds or 0.0
        shown = "finished, will be skipped" if finished else f"{_duration(seconds)} ({source})"
        screen.say(f"  {' '.join(job.overrides) or 'defaults'}: {shown}")
    screen.say(f"{len(jobs)} jobs, {done} finished, {len(jobs) - done} to run, one after another.")
    if unknown:
        screen.say(
            f"{unknown} jobs of unknown length: no finished run of their configuration is in "
            f"{', '.join(sorted(map(str, folders)))}; give --seconds."
        )
    at_least = "at least " if unknown else ""
    screen.say(f"time: {at_least}{_duration(total)}")
    if options.price is not None:
        screen.say(f"cost: {at_least}{total / 3600 * options.price:,.2f} at {options.price:,.2f} an hour")
    return 0


def _finished(folders: set[Path]) -> Iterator[tuple[str, tuple[float, int]]]:
    """Group digest -> (mean seconds, number of runs) of the finished runs in some folders."""
    seconds: dict[str, list[float]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/summary.json")):
            try:
                config, summary = read_json(path.with_name("config.json")), read_json(path)
            except UserError:
                continue  # a damaged run tells nothing; `pgolf compare` names it
            spent = sum(summary.get("seconds", {}).values())
            seconds.setdefault(group_digest(config), []).append(spent)
    for key, spent_by_run in seconds.items():
        yield key, (sum(spent_by_run) / len(spent_by_run), len(spent_by_run))


def _estimate(key: str, known: dict[str, tuple[float, int]], given: float | None) -> tuple[float | None, str]:
    if key in known:
        seconds, number = known[key]
        return seconds, f"mean of {number} finished run{'s' * (number > 1)}"
    return (given, "--seconds") if given is not None else (None, "no finished run, no --seconds")


def _is_done(directory: Path, wanted: str) -> bool:
    path = directory / "status.json"
    if not path.is_file():
        return False
    status = read_json(path)
    return bool(status.get("state") == "done" and status.get("digest") == wanted)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

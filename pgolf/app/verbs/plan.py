"""`pgolf plan [sweep overrides]`: what a study costs, before it starts."""

from pgolf.app import estimate
from pgolf.app.console import Screen
from pgolf.app.sweep import seeds_first
from pgolf.app.verbs.composing import compose_all, parser, refuse_words

DESCRIPTION = """\
Count the jobs of a sweep and what they cost: jobs x seconds x price. The seconds are those of
finished runs of the same configuration (any seed) in the run folders, or --seconds, or
train.max_seconds as a lower bound; without any it says so.

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
    jobs = compose_all(seeds_first(options.words), options, multirun=True)
    found = estimate.estimates(jobs, options.seconds)
    screen = Screen()
    for job, one in zip(jobs, found, strict=True):
        shown = "finished, will be skipped" if one.finished else f"{estimate.duration(one.seconds)} ({one.source})"
        screen.say(f"  {' '.join(job.overrides) or 'defaults'}: {shown}")
    done = sum(one.finished for one in found)
    screen.say(f"{len(jobs)} jobs, {done} finished, {len(jobs) - done} to run.")
    for line in estimate.summed(found, options.price):
        screen.say(line)
    return 0

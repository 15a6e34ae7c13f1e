"""The end of a sweep: what became of every job, read from the run directories.

So it works with every Hydra launcher, in this process or on a cluster.
"""

from dataclasses import dataclass
from pathlib import Path

from pgolf.app import estimate, table
from pgolf.app.compose import Job
from pgolf.app.launch import Outcome, Request, carry_out
from pgolf.digest import digest
from pgolf.errors import UserError
from pgolf.files import read_json


@dataclass(frozen=True)
class Planned:
    """A job of the sweep. `skipped`: its result was there before the sweep began."""

    job: Job
    skipped: bool


def seeds_first(arguments: list[str]) -> list[str]:
    """The arguments of a sweep with `seed=` in front, so that seeds change slowest.

    Hydra lets what is named first change slowest. With the seed there, every variant of one seed is through before
    the next seed begins: a sweep that is cut off has whole comparisons.
    """
    seeds = [word for word in arguments if word.startswith("seed=")]
    first = next((place for place, word in enumerate(arguments) if "=" in word and not word.startswith("-")), 0)
    rest = [word for word in arguments if word not in seeds]
    return [*rest[:first], *seeds, *rest[first:]]


def plan(jobs: list[Job]) -> list[Planned]:
    """Say how many jobs there are and what they will take, and note which are finished already."""
    planned = [Planned(job, _state(job)[0] == "done" and not job.config["force"]) for job in jobs]
    skipped = sum(one.skipped for one in planned)
    print(f"{len(jobs)} jobs, {skipped} of them finished before.")
    if skipped < len(jobs):
        print("\n".join(estimate.summed(estimate.estimates(jobs))))
    return planned


def finish(planned: list[Planned], hydra_status: int) -> int:
    """Print a line per job; 0 when all are done, else the status of an interruption, else 1."""
    print("\nsweep:")
    failed = 0
    for one in planned:
        state, why = _state(one.job)
        failed += state != "done"
        shown = "skipped" if one.skipped and state == "done" else state
        title = " ".join(one.job.overrides) or "defaults"
        print(f"  {shown:<11} {title}: {why}  {_short(one.job.directory)}")
    return (hydra_status or 1) if failed else hydra_status


def one_by_one(requests: list[Request]) -> int:
    """Carry out evaluations of one run in turn and print a line for each; 0 when all are done, else the status of an
    interruption, else 1. A failed one does not hinder the others, unless the configuration says `fail_fast`."""
    outcomes: list[Outcome] = []
    for number, request in enumerate(requests):
        print(f"\njob {number}: {' '.join(request.overrides)}")
        outcomes.append(carry_out(request))
        if outcomes[-1].state == "interrupted" or (outcomes[-1].state == "failed" and request.config["fail_fast"]):
            break
    print("\nsweep:")
    for index, request in enumerate(requests):
        state, why = (outcomes[index].state, outcomes[index].sentence) if index < len(outcomes) else ("not started", "")
        print(f"  {state:<11} {' '.join(request.overrides)}: {why}  {_short(request.directory)}")
    interrupted = [one.exit_status for one in outcomes if one.state == "interrupted"]
    good = len(outcomes) == len(requests) and all(one.exit_status == 0 for one in outcomes)
    return 0 if good else (interrupted or [1])[0]


def _state(job: Job) -> tuple[str, str]:
    """State and reason of a job, as its directory tells."""
    path = job.directory / "status.json"
    if not path.exists():
        return "not started", "no status.json"
    try:
        status = read_json(path)
        if status.get("digest") != digest(job.config):
            return "not started", "its directory holds another configuration's run"
        if status.get("state") == "done":
            return "done", table.line(read_json(job.directory / "summary.json"))
    except UserError as error:
        return "failed", str(error)
    why = status.get("error") or f"stopped in stage {status.get('stage')}"
    return "failed", str(why)


def _short(directory: Path) -> str:
    here = Path.cwd()
    return str(directory.relative_to(here) if directory.is_relative_to(here) else directory)

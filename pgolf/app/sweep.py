"""The end of a sweep: what became of every job, read from the run directories.

So it works with every Hydra launcher, in this process or on a cluster.
"""

from dataclasses import dataclass
from pathlib import Path

from pgolf.app import table
from pgolf.app.compose import Job
from pgolf.digest import digest
from pgolf.errors import UserError
from pgolf.files import read_json


@dataclass(frozen=True)
class Planned:
    """A job of the sweep. `skipped`: its result was there before the sweep began."""

    job: Job
    skipped: bool


def plan(jobs: list[Job]) -> list[Planned]:
    """Say how many jobs there are and note which are finished already."""
    planned = [Planned(job, _state(job)[0] == "done" and not job.config["force"]) for job in jobs]
    skipped = sum(one.skipped for one in planned)
    print(f"{len(jobs)} jobs, {skipped} of them finished before.")
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

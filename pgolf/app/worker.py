"""The process that works: loads the resolved configuration of a run, and never composes one."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgolf.app import build, failure, signals
from pgolf.app.machine import keep_compiled, leave, prepare_process
from pgolf.app.tracking import NoTracker
from pgolf.console import Console, Silent
from pgolf.files import read_json

if TYPE_CHECKING:
    from pgolf.distributed import Group

INTERRUPTED = 130


def work(directory: Path, group: "Group", console: Console) -> dict[str, Any]:
    """Carry out the run in `directory`: train and score, or score another run again.

    Reads config.json and run.json; gives the summary. Only the leader tracks.
    """
    from pgolf import run

    config, identity = read_json(directory / "config.json"), read_json(directory / "run.json")
    identity |= {"world_size": group.world_size, "device": str(group.device)}
    keep_compiled(identity["code_hash"])
    recipe = build.recipe(config)
    tracker = build.build(config["track"], "track") if group.leads else NoTracker()
    tracker.start(directory, identity, config, console)
    summary: dict[str, Any] | None = None
    try:
        source = identity.get("source")
        if source is None:
            summary = run.execute(recipe, identity, directory, group, console, tracker)
        else:
            again = bool(identity["requantise"])
            summary = run.evaluate(recipe, identity, Path(source), directory, group, console, tracker, again)
        return summary
    finally:
        tracker.finish(summary)


def main(run_directory: str) -> int:
    """One rank under torchrun; gives the exit status. A failure is noted in the run directory."""
    prepare_process()
    from pgolf import distributed
    from pgolf.app.console import Screen

    signals.interruptible()
    signals.die_with_parent()
    directory, group = Path(run_directory), None
    try:
        group = distributed.join(float(read_json(directory / "config.json")["launch"]["timeout_seconds"]))
        work(directory, group, Screen(directory / "train.log") if group.leads else Silent())
        group.close()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return failure.record(directory, group.rank if group else -1, error).exit_status


if __name__ == "__main__":
    leave(main(sys.argv[1]))

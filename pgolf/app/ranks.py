"""One process of a `torchrun -m pgolf` that the user typed: the leader prepares, all work."""

from typing import TYPE_CHECKING

from pgolf.app import failure

if TYPE_CHECKING:
    from pgolf.app.launch import Outcome, Request
    from pgolf.distributed import Group

GO, STOP, REFUSED = 0.0, 1.0, 2.0


def as_one_rank(request: "Request") -> "Outcome":
    """Do this process's part of the run; only the leader shows and notes how it ended."""
    from pgolf import distributed

    group = distributed.join(float(request.config["launch"]["timeout_seconds"]))
    return _lead(request, group) if group.leads else _follow(request, group)


def _lead(request: "Request", group: "Group") -> "Outcome":
    from pgolf.app.console import Screen
    from pgolf.app.launch import Outcome, conclude, guarded, prepare
    from pgolf.app.lock import RunLock
    from pgolf.app.worker import work

    screen = Screen(request.directory / "train.log")
    told = False

    def tell(word: float) -> None:
        nonlocal told
        told = True
        group.from_leader(word)

    def lead() -> Outcome:
        with RunLock(request.directory, screen.say) as lock:
            finished = prepare(request, screen, lock)
            tell(GO if finished is None else STOP)
            if finished is not None:
                return finished
            work(request.directory, group, screen)
            group.close()
            return conclude(request, screen)

    outcome = guarded(request, screen, lead, one_of_many=True)
    if not told:
        tell(REFUSED)
    return outcome


def _follow(request: "Request", group: "Group") -> "Outcome":
    from pgolf.app.launch import INTERRUPTED, Outcome
    from pgolf.app.worker import work
    from pgolf.console import Silent

    word = group.from_leader(GO)
    if word != GO:
        return Outcome("skipped", "", 0) if word == STOP else Outcome("failed", "", 1)
    try:
        work(request.directory, group, Silent())
        group.close()
        return Outcome("done", "", 0)
    except KeyboardInterrupt:
        return Outcome("interrupted", "", INTERRUPTED)
    except Exception as error:
        return Outcome("failed", "", failure.record(request.directory, group.rank, error).exit_status)

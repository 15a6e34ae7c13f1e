"""A function over many items in several processes, with the results in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pgolf.errors import UserError

Common = TypeVar("Common")
Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Not on macOS.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_processes(
    function: Callable[[Common, Item], Result], common: Common, items: Iterable[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """(item, function(common, item)) for each item, in order; at most a few items a worker are held.

    Args:
        function: of a module, so that it can be sent.
        common: sent once to each worker.

    Raises what the function raises, and UserError when a worker dies.
    """
    # A fork would copy whatever threads this process has; a spawned worker imports what it needs, and no torch.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (function, common))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(_work, item)))
            if len(waiting) > 3 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died (killed for its memory?): free memory, or set data.workers lower."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_job: tuple[Callable[[Any, Any], Any], Any] | None = None  # Of a worker process: sent once, used for every item.


def _begin(function: Callable[[Any, Any], Any], common: Any) -> None:
    """Prepare a worker process: Ctrl-C is the parent's affair, and a parent that is gone ends it."""
    global _job
    _job = function, common
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    assert _job is not None
    function, common = _job
    return function(common, item)

"""Files that must not be opened while something runs: what is trained or calibrated must not see validation text, and
a strategy gets it from the scorer alone.

Python tells audit hooks of every file that is opened (by `open`, numpy, memory maps); a hook that raises stops it. A
hook cannot be taken away again, so one is installed once for the process and asks what is sealed at the moment.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pgolf.errors import UserError

_sealed: dict[str, tuple[str, str]] = {}
_installed = False

BEFORE_SCORING = "nothing before scoring may read validation text"
WHILE_SCORING = "a strategy has its text from the scorer, and learns from what was scored alone"


class SealBroken(UserError):
    """A sealed file was opened."""


@contextlib.contextmanager
def sealed(files: Iterable[Path], what: str, why: str = BEFORE_SCORING) -> Iterator[None]:
    """While the block runs, opening one of `files` raises SealBroken, a sentence with `what` runs and `why` it may not.

    Only opening is refused: what was read before can still be used. It holds for all threads, not for other processes.
    """
    global _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    names = {os.path.realpath(path) for path in files}
    before = dict(_sealed)
    _sealed.update(dict.fromkeys(names, (what, why)))
    try:
        yield
    finally:
        _sealed.clear()
        _sealed.update(before)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _sealed or not arguments or not isinstance(arguments[0], str | os.PathLike):
        return
    found = _sealed.get(os.path.realpath(arguments[0]))
    if found is not None:
        what, why = found
        raise SealBroken(f"{what} opened {os.fspath(arguments[0])}: {why}.")

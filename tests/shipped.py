"""Jobs of the shipped configuration, all composed by one composer that has read the files."""

from contextlib import ExitStack
from functools import cache

from pgolf.app.compose import Composer, Job, composer


@cache
def made() -> Composer:
    """One for the life of the process."""
    return ExitStack().enter_context(composer())


def job(*overrides: str) -> Job:
    """The one job of these overrides."""
    return made().jobs(list(overrides), False)[0]

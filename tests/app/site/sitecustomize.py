"""Python reads this file at start when its folder is on PYTHONPATH.

It puts a fake in the place of `pgolf.run` and adds `pgolf.fakes`, so that tests of the command line
in real processes train nothing."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).parent
FAKES = {"pgolf.run": HERE / "fake_run.py", "pgolf.fakes": HERE / "fake_parts.py"}


class Fakes(importlib.abc.MetaPathFinder):
    """Finds the fake modules before the real ones."""

    def find_spec(self, name, path=None, target=None):
        file = FAKES.get(name)
        return importlib.util.spec_from_file_location(name, file) if file else None


sys.meta_path.insert(0, Fakes())

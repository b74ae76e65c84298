"""Plants a fault in one rank from outside the code: Python runs this at its start where PYTHONPATH names its folder.

PLANTED="RANK WAY NUMBER MODULE [NAME]": the rank fails at the NUMBER-th call of NAME, or as it imports MODULE.
PLANTED_AT names a file that the fault leaves its time in.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def fail(way):
    """Stops, raises or sleeps."""
    Path(os.environ["PLANTED_AT"]).write_text(str(time.time()))
    if way == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    if way == "raising":
        raise RuntimeError("planted")
    time.sleep(3600)


def failing(function, way, number):
    """The same function, failing at its `number`-th call."""
    calls = 0

    @functools.wraps(function)
    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number:
            fail(way)
        return function(*arguments, **options)

    return wrapped


class Planter(importlib.abc.MetaPathFinder):
    """Finds one module as Python does, and changes it once it is there."""

    def __init__(self, way, number, module, name=""):
        self.way, self.number, self.module, self.name = way, int(number), module, name

    def find_spec(self, module, path, target=None):
        """A spec whose loader plants the fault; none for other modules."""
        if module != self.module:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(module, path, target)
        load = spec.loader.exec_module

        def planting(made):
            if not self.name:
                fail(self.way)
            load(made)
            *owners, last = self.name.split(".")
            owner = functools.reduce(getattr, owners, made)
            setattr(owner, last, failing(getattr(owner, last), self.way, self.number))

        spec.loader.exec_module = planting
        return spec


rank, *fault = os.environ.get("PLANTED", "none").split()
if os.environ.get("RANK") == rank:
    sys.meta_path.insert(0, Planter(*fault))

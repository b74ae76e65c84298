"""Small watchmen around the loop: signals that ask a run to stop, and a clock that ends one that hangs."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask for a checkpoint and a clean end; Slurm sends the first two, a terminal the third."""


BROKEN = 1
"""Exit status of what is no mistake of the user's: a scheduler's job starts again."""


class StopRequest:
    """Remembers that this process was asked to stop; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.signal: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal is not None


class HangWatch:
    """Ends the process, with every thread's traceback and a sentence on stderr, when `beat` was not called for long.

    A peer that hangs without dying stops all ranks; collectives and exchanges give up after `minutes`, naming what
    they waited for, and the watch `SLACK` later, wherever the process hangs.
    """

    SLACK = 0.25
    """Of the time, at most a minute: what an error needs to be raised and told."""

    def __init__(self, minutes: float, rank: int = 0, tell: Callable[[str], None] | None = None):
        """`tell` gets the sentence too."""
        self.minutes = minutes
        self.rank = rank
        self._tell = tell
        self._what = ""
        self._deadline: float | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def beat(self, what: str = "") -> None:
        """Says that the process is alive, and what it is at now."""
        seconds = self.minutes * 60
        slack = min(60.0, self.SLACK * seconds)
        with self._changed:
            self._what, self._deadline = what, time.monotonic() + seconds + slack
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="hang watch", daemon=True)
                self._thread.start()
            self._changed.notify()
        # Where a hanging call keeps Python's threads from running, this one still does.
        faulthandler.dump_traceback_later(seconds + 2 * slack + 1, exit=True, file=sys.stderr)

    def stop(self) -> None:
        """Ends the watch."""
        faulthandler.cancel_dump_traceback_later()
        with self._changed:
            self._deadline = None
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        with self._changed:
            while self._deadline is not None and self._deadline > time.monotonic():
                self._changed.wait(self._deadline - time.monotonic())
            if self._deadline is None:
                return
            where = f" in {self._what}" if self._what else ""
            sentence = f"rank {self.rank} got nowhere for {self.minutes:g} minutes{where}"
        faulthandler.dump_traceback(sys.stderr)
        print(f"{sentence}; the stacks of its threads are above", file=sys.stderr, flush=True)
        try:
            if self._tell is not None:
                self._tell(sentence)
        finally:
            os._exit(BROKEN)

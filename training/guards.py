"""Signals that ask a run to stop."""

import signal
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

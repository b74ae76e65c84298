"""Says what a rank is at between its first step and its last; the watch (watch.py) ends it when it gets nowhere."""

import statistics
import time
from collections import deque
from datetime import timedelta
from pathlib import Path

from training.distributed import set_timeout
from training.parts.part import Moment, Part, Run
from training.phases import Phase

REMEMBERED, FEWEST = 64, 8
"""Steps that the usual length of a step is the median of, and how many there must be to speak of one."""


class Watching(Part):
    """Tells the watch of every step, save and end, and how long a step may take by the steps before it.

    Exchanges and collectives give up by themselves at the longest deadline of what ranks may be at.
    """

    def __init__(self, run: Run):
        self.run = run
        self._lengths: deque[float] = deque(maxlen=REMEMBERED)
        self._begun = 0.0
        self._first = True

    def begin(self) -> None:
        self.run.world.watch.beat(Phase.FIRST_STEP)

    def before_step(self, step: int) -> None:
        self._begun = time.monotonic()
        if not self._first:
            self.run.world.watch.beat(Phase.STEP, step, self._limit())

    def after_step(self, moment: Moment) -> None:
        if self._first:
            self._first = False
            self.run.world.plane.barrier()  # nobody hurries those who are still at their first step
            set_timeout(self.run.world, timedelta(minutes=self.run.config.longest_minutes))
            self.run.events.write("first step", step=moment.step)
        else:
            self._lengths.append(time.monotonic() - self._begun)
        self.run.world.watch.beat(Phase.STEP, moment.step)

    def before_save(self) -> None:
        self.run.world.watch.beat(Phase.SAVE)

    def after_save(self, folder: Path) -> None:
        self.run.world.watch.beat(Phase.STEP)

    def finish(self) -> None:
        self.run.world.watch.beat(Phase.LEAVING)

    def _limit(self) -> tuple[float, str] | None:
        """Minutes that a step may take by the steps before it, and why."""
        deadlines = self.run.config.deadlines
        if deadlines.slow_step_factor is None or len(self._lengths) < FEWEST:
            return None
        usual = statistics.median(self._lengths)
        limit = max(deadlines.slow_step_factor * usual, 60 * deadlines.slow_step_floor_minutes) / 60
        return limit, f"where a step takes {usual:.3g} s"

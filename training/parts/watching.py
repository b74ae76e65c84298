"""How long ranks wait for each other: long until the first step is over, short from then on."""

from datetime import timedelta
from pathlib import Path

from training.distributed import set_timeout
from training.guards import BROKEN, HangWatch
from training.parts.part import Moment, Part, Run


class Watching(Part):
    """Ends a rank that gets nowhere for `training.start_minutes`, or after its first step for `hang_minutes`.

    A peer that hangs without dying stops all ranks in an exchange. That ends with an error which names the rank or the
    collective; the watch is for whatever else a rank may hang in, and waits a little longer.
    """

    def __init__(self, run: Run):
        self.run = run
        minutes, rank = run.config.training.start_minutes, run.world.rank
        self.watch = HangWatch(minutes, rank, lambda sentence: run.events.error(sentence, BROKEN))
        self._first = True

    def beat(self, what: str) -> None:
        """Says that the run is alive, and what it is at now."""
        self.watch.beat(what)

    def begin(self) -> None:
        self.beat("the data of the first step")

    def before_step(self, step: int) -> None:
        self.beat(f"step {step}")

    def after_step(self, moment: Moment) -> None:
        if self._first:
            self._first = False
            self.run.world.plane.barrier()  # nobody hurries those who are still at their first step
            minutes = self.run.config.training.hang_minutes
            set_timeout(self.run.world, timedelta(minutes=minutes))
            self.watch.minutes = minutes
        self.beat(f"what follows step {moment.step}")

    def before_save(self) -> None:
        self.beat("saving")

    def after_save(self, folder: Path) -> None:
        self.beat(f"what follows the saving of {folder.name}")

    def close(self) -> None:
        self.watch.stop()

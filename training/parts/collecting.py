"""Python's garbage collector, at the same step on all ranks."""

import gc

from training.parts.part import Moment, Part


class Collecting(Part):
    """Collects every `interval` steps and never in between; without an interval Python collects when it likes.

    Left alone, each rank collects at moments of its own, for up to seconds, and all others wait for it in the next
    collective: of a thousand ranks one is always late. What the first step left, compiled models
    among it, stays for good and is not looked at again.
    """

    def __init__(self, interval: int | None):
        self.interval = interval
        self._frozen = False

    def begin(self) -> None:
        if self.interval is not None:
            gc.disable()

    def after_step(self, moment: Moment) -> None:
        if self.interval is None:
            return
        if not self._frozen:
            gc.collect()
            gc.freeze()
            self._frozen = True
        elif moment.due(self.interval):
            gc.collect()

    def close(self) -> None:
        if self.interval is not None:
            gc.unfreeze()
            gc.enable()

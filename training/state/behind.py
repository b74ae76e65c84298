"""Work of all ranks behind the steps of a run: in a thread of each, over exchanges of their own, one thing at a time.

    begin -> (thread) the work ..................... over here -> over on every rank -> outcome
    step  ->  step  ->  step: is it over everywhere? -> step -> step ->     ^ at the same step on all of them

Ranks come to the end of it at different moments. What they do about it, raising what went wrong among it, they must do
at the same step, else some of them wait in that step for others that have left. So each step sends word of whether the
work is over, without waiting, and the next one reads what came of that.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Generic, TypeVar

from training.distributed import World
from training.plane import PeerLost, Pending, node_name

T = TypeVar("T")
SLACK = 1.25
"""Of the time that ranks wait for each other in an exchange, which fails earlier and names the one that is missing."""


class Hanging(RuntimeError):
    """Work that is not over in time, on this rank."""


class Behind(Generic[T]):
    """The work that goes on behind the steps, if any."""

    def __init__(self, world: World, name: str, minutes: float, patience: timedelta):
        """`patience` is for the ranks to find each other, which they do here, all together; `minutes` for any work."""
        self.world = world.apart(name, patience)
        """The ranks, with exchanges that are for the work alone."""
        self.world.plane.set_timeout(timedelta(minutes=minutes))
        self._ranks, self._minutes = world, minutes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._work: Future[T] | None = None
        self._what, self._deadline = "", 0.0
        self._asked: Pending | None = None

    def begin(self, what: str, work: Callable[[], T]) -> None:
        """Begins work, named in words; all ranks call it together."""
        assert self._work is None, f"{self._what} is still going on"
        self._what, self._deadline = what, time.monotonic() + SLACK * 60 * self._minutes
        self._work = self._thread.submit(work)

    def is_over(self) -> bool:
        """Whether all ranks have come to the end of it; all call it together, once a step, and learn it at the same.

        Raises PeerLost or Hanging where there is no end to wait for.
        """
        assert self._work is not None, "nothing goes on"
        if self._work.done() and isinstance(error := self._work.exception(), PeerLost):
            raise self._lost(error)
        if not self._work.done() and time.monotonic() > self._deadline:
            raise self._hanging()
        asked, self._asked = self._asked, None
        if asked is not None and asked.result()[0] == self._ranks.size:
            return True
        self._asked = self._ranks.plane.begin_sum([self._work.done()])
        return False

    def outcome(self) -> T:
        """Waits for the end, and returns or raises what came of it; all ranks call it together."""
        assert self._work is not None, "nothing goes on"
        wait([self._work], max(0.0, self._deadline - time.monotonic()))
        if not self._work.done():
            raise self._hanging()
        work, self._work, self._asked = self._work, None, None
        try:
            return work.result()
        except PeerLost as error:
            raise self._lost(error) from None

    def close(self) -> None:
        """Ends the thread and the exchanges; work that still goes on loses its peers and fails."""
        self.world.plane.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _lost(self, error: PeerLost) -> PeerLost:
        return PeerLost(f"{error} in {self._what}, behind the steps")

    def _hanging(self) -> Hanging:
        who, minutes = f"rank {self._ranks.rank} on node {node_name()}", self._minutes
        return Hanging(f"{who} got nowhere for {minutes:g} minutes in {self._what}, behind the steps")

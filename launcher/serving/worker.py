"""The one thread that runs the model, and the queue before it.

requests -> rows and calls, in the order they came -> rows that wait together are written as one batch
                                                   -> a call (embeddings, gaps) has the model for itself
"""

import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from common.mistakes import Mistake
from launcher.serving.loaded import Loaded
from launcher.serving.writing import Row, write

MOST_ROWS, MOST_WAITING = 8, 256
"""Rows of a batch, and rows and calls that wait, unless something else is said."""


class Busy(Exception):
    """More waits than the queue holds; it may pass."""


class Ending(Busy):
    """The server was ended meanwhile."""

    def __init__(self) -> None:
        super().__init__("the server was ended before the answer was; ask again once it is back")


class _Call(NamedTuple):
    work: Callable[[], Any]
    outcome: Future[Any]

    def fail(self, error: Exception) -> None:
        if self.outcome.set_running_or_notify_cancel():
            self.outcome.set_exception(error)

    def run(self) -> None:
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            self.outcome.set_result(self.work())
        except Exception as error:  # who waits for it is told
            self.outcome.set_exception(error)


class Worker:
    """Runs a model for many; `with` starts and ends its thread."""

    def __init__(self, loaded: Loaded, most_rows: int = MOST_ROWS, most_waiting: int = MOST_WAITING):
        self.loaded, self.most_rows, self.most_waiting = loaded, most_rows, most_waiting
        self._waiting: deque[Row | _Call] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._batch: Sequence[Row] = ()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what runs at its next token and drops what waits; who waits for it is told."""
        with self._changed:
            self._stopping = True
            for each in (*self._batch, *self._waiting):
                if isinstance(each, _Call):
                    each.fail(Ending())
                elif not each.is_done:
                    each.error = Ending()
                    each.tell(each)
            self._changed.notify()
        self._thread.join()

    def write(self, rows: Sequence[Row]) -> None:
        """Queues rows, all or none; `Row.tell` says how they get on. Busy when there is no room now."""
        if len(rows) > self.most_waiting:
            raise Mistake(
                f"prompt: these are {len(rows)} texts, and at most {self.most_waiting} wait here; ask for fewer"
            )
        self._queue(rows)

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Queues work on the model. Busy when there is no room now."""
        outcome: Future[Any] = Future()
        self._queue([_Call(work, outcome)])
        return outcome

    def _queue(self, items: Sequence[Row | _Call]) -> None:
        with self._changed:
            if self._stopping:
                raise Ending
            if len(self._waiting) + len(items) > self.most_waiting:
                raise Busy(f"{len(self._waiting)} requests wait already; ask again later")
            self._waiting.extend(items)
            self._changed.notify()

    def _next(self) -> _Call | Sequence[Row] | None:
        """What comes next; None when the server ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            first = self._waiting.popleft()
            if isinstance(first, _Call):
                return first
            rows = [first]
            while self._waiting and len(rows) < self.most_rows and isinstance(self._waiting[0], Row):
                rows.append(self._waiting.popleft())  # type: ignore[arg-type]
            self._batch = rows
            return rows

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            if isinstance(turn, _Call):
                turn.run()
            else:
                self._write(turn)

    def _write(self, rows: Sequence[Row]) -> None:
        try:
            write(self.loaded, [row for row in rows if not row.is_done])
        except Exception as error:  # the server lives on; who waits for the rows is told
            traceback.print_exc(file=sys.stderr)
            for row in rows:
                if not row.is_done:
                    row.error = error
                    row.tell(row)

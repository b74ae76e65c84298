"""Ends all ranks, with a sentence that names the one to blame, when a rank gets nowhere or breaks.

    rank -- its place, every second --> parent -- the worst place below it --> ... --> rank 0: the verdict
    rank <-- the sentence, at once, from whoever ends the run, all over the tree --> rank

A thread beside the run's own. A rank that hangs does so in one of the phases of `whereabouts.py`; when the time of
that phase is up, the ranks know between them who is behind the others, in no collective, or does not answer.
"""

import dataclasses
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from training import fence
from training.events import EventLog
from training.guards import BROKEN
from training.marks import leave_marks
from training.neighbours import Neighbour, neighbours_of, spoken
from training.phases import Phase
from training.plane import Links, node_name
from training.whereabouts import Place, looked_up, slack, worst, write_flight_record

TICK = 1.0
"""Seconds between words to the neighbours."""
GRACE = 8.0
"""Seconds that a rank has to end by itself once another has broken: it cleans up, or hangs in a collective."""
WRITE_SECONDS = 2.0
"""How long writing a sentence or a record may take."""
STDERR = 2
"""Its descriptor, which tracebacks are written to."""
SILENT_TICKS = 5
"""A neighbour that has said nothing for so many ticks does not answer."""


class Watch:
    """The watch over one rank. Without minutes for a phase nothing is watched in it."""

    def __init__(
        self,
        rank: int = 0,
        minutes: Mapping[Phase, float] | None = None,
        events: EventLog | None = None,
        flight_record: Path | None = None,
    ):
        """`flight_record` is where torch's record of the last collectives goes when the watch ends this rank."""
        self.minutes = dict(minutes or {})
        self.events = events
        """Where it notes what it ends the run for."""
        self.attempt = ""
        """Which start of the run this is, once the run is its own: nothing is noted for one that is superseded."""
        self._flight_record = flight_record
        self._place, self._since = Place(rank, node_name()), time.monotonic()
        self._parent: Neighbour | None = None
        self._children: list[Neighbour] = []
        self._lock = threading.Lock()
        self._over, self._told = threading.Event(), threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._late_since: float | None = None
        self._sentence, self._code, self._exit_at = "", BROKEN, float("inf")

    @property
    def place(self) -> Place:
        """Where this rank is."""
        with self._lock:
            return dataclasses.replace(self._place, seconds=time.monotonic() - self._since)

    def beat(self, phase: Phase, step: int | None = None, limit: tuple[float, str] | None = None) -> None:
        """Says that the rank got somewhere and what it is at now; `limit` is a shorter deadline in minutes, and why."""
        minutes, note = self.minutes.get(phase, 0.0), ""
        if limit is not None and limit[0] < minutes:
            minutes, note = limit
        with self._lock:
            place, self._since = self._place, time.monotonic()
            is_news = place.phase != phase
            beats, behind = place.beats + 1, place.behind
            self._place = Place(place.rank, place.node, phase, step, minutes, behind, note, beats=beats)
        if minutes and not self._over.is_set():
            # Where a hanging call keeps Python's threads from running, this one still does.
            faulthandler.dump_traceback_later(minutes * 60, exit=True, file=STDERR)
            self._start()
        if is_news:  # at once: a process that is stopped in the next moment says no more
            self._say_where()

    def goes_behind(self, phase: Phase | None) -> None:
        """Says that something goes on behind the steps from now on, or nothing any more."""
        with self._lock:
            self._place = dataclasses.replace(self._place, behind=phase or "")
        self._say_where()

    def join(self, links: Links) -> None:
        """From now on places and sentences travel over these connections."""
        self._parent, self._children = neighbours_of(links)
        self._say_where()

    def leave(self) -> None:
        """Returns when all ranks below this one have left; their processes are over then, whatever they hung in."""
        self.beat(Phase.LEAVING)
        while any(not child.gone for child in self._children):
            time.sleep(0.02)
        if self._parent:
            self._parent.say({"bye": True}, urgent=True)

    def stop(self) -> None:
        """Ends the watch; the connections stay open until the process ends, which is how the parent learns of it."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def end_all(self, sentence: str, code: int) -> None:
        """Lets all other ranks end with this sentence and status; this one ends by itself."""
        self._spread(sentence, code, at_once=False)
        self._told.set()
        self.stop()

    def heard(self, seconds: float) -> tuple[str, int] | None:
        """Sentence and status that the run ends with, waiting for them for so long; None when there are none."""
        return (self._sentence, self._code) if self._told.wait(seconds) else None

    @property
    def _neighbours(self) -> list[Neighbour]:
        return [*([self._parent] if self._parent else []), *self._children]

    @property
    def _tick(self) -> float:
        return min(TICK, slack(self._place.minutes or 1.0) / 8)

    def _say_where(self) -> None:
        for neighbour in self._neighbours:
            neighbour.say({"place": dataclasses.asdict(self.place)})

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        spoke = 0.0
        while not self._over.is_set():
            tick = self._tick
            for neighbour in spoken(self._neighbours, tick / 4):
                self._hear(neighbour)
            if time.monotonic() - spoke >= tick:
                spoke = time.monotonic()
                self._look()
            if time.monotonic() > self._exit_at:
                self._exit()

    def _hear(self, neighbour: Neighbour) -> None:
        for message in neighbour.listen():
            if "end" in message:
                self._spread(message["end"], message["code"], message["at_once"], but=neighbour)
                self._told.set()
            elif "bye" in message:
                neighbour.said_bye = True
            else:
                said = {name: Place(**message[name]) for name in ("place", "worst") if name in message}
                neighbour.hear_of(**said, late=message.get("late", False))
        if neighbour.gone and not neighbour.said_bye and not self._ended:
            sentence = f"{neighbour.place.name} left without a word in {neighbour.place.at}: its process was killed"
            self._end(sentence, neighbour.place, at_once=False)

    def _look(self) -> None:
        """Says where this rank and those below it are, and ends the run when one is late."""
        mine = dataclasses.replace(self.place, **looked_up())
        below = [mine, *self._places(self._children)]
        late = any(place.late for place in below) or any(child.late for child in self._children if not child.gone)
        facts = {"place": dataclasses.asdict(mine), "worst": dataclasses.asdict(worst(below)), "late": late}
        for neighbour in self._neighbours:
            neighbour.flush()
            neighbour.say(facts)
        suspects = [*below, *self._places([self._parent] if self._parent else [])]
        late = late or any(place.late for place in suspects)
        self._late_since = (self._late_since or time.monotonic()) if late else None
        if self._late_since is None or self._ended:
            return
        culprit = worst(suspects)
        if not culprit.phase:  # it was gone before it said anything
            culprit = dataclasses.replace(culprit, phase=mine.phase, minutes=mine.minutes)
        share = 1 / 5 if self._parent is None else 1 / 2  # rank 0 sees all, so it speaks first
        if time.monotonic() - self._late_since > share * slack(culprit.minutes or mine.minutes):
            self._end(culprit.sentence(), culprit, at_once=True)

    def _places(self, neighbours: list[Neighbour]) -> list[Place]:
        """Where they are, or for those that answer, whom the ranks below them wait for."""
        found = []
        for each in neighbours:
            if each.gone:
                continue
            answers = each.silence < SILENT_TICKS * self._tick
            of_child = each.worst if answers and each is not self._parent else each.place
            found.append(of_child.aged(each.silence, answers))
        return found

    def _spread(self, sentence: str, code: int, at_once: bool, but: Neighbour | None = None) -> bool:
        """Remembers what the run ends with and passes it on; False when it is ending already."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
            self._sentence, self._code = sentence, code
            self._exit_at = time.monotonic() + (0 if at_once else GRACE)
        for neighbour in self._neighbours:
            if neighbour is not but:
                neighbour.say({"end": sentence, "code": code, "at_once": at_once}, urgent=True)
        return True

    def _end(self, sentence: str, culprit: Place, at_once: bool) -> None:
        """Ends all ranks, and tells of it."""
        events = self.events

        def tell() -> None:
            if events is None or fence.is_lost(run_dir := events.path.parent, self.attempt):
                return
            events.error(sentence, BROKEN, culprit.facts)
            if at_once:
                leave_marks(run_dir, self.attempt, "hang", f"hang-{culprit.node}")

        if self._spread(sentence, BROKEN, at_once):
            _patiently(tell)
            self._told.set()

    def _exit(self) -> None:
        """Ends the process with the stacks of its threads and the sentence."""
        faulthandler.dump_traceback(STDERR)
        print(f"{self._sentence}; where this rank was is above", file=sys.stderr, flush=True)
        if (path := self._flight_record) is not None:
            _patiently(lambda: write_flight_record(path))
        os._exit(self._code)


def _patiently(write: Callable[[], None]) -> None:
    """Has something written, and goes on without where the file system hangs too."""
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(WRITE_SECONDS)

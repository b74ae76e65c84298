"""A side channel to a rank's neighbours in the tree of ranks (plane.py), which works while the main thread hangs.

Lines of JSON over connections of their own. Nothing here blocks: a neighbour that takes nothing is passed over until
it has taken what it was sent, so what waits for it stays small.
"""

import json
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from training.plane import Link, Links
from training.whereabouts import Place

MOST_BYTES = 1 << 16
"""Longest line that a neighbour may send."""


class Neighbour:
    """One of them: what it last said of itself, and when."""

    def __init__(self, rank: int, node: str, handle: socket.socket):
        handle.setblocking(False)
        self._socket, self._incoming, self._outgoing = handle, b"", b""
        self._takes = True
        self._lock = threading.Lock()  # the main thread says where it is, the watch's thread all else
        self.place = Place(rank, node)
        """Where it last was."""
        self.worst = self.place
        """Of a child: whom the ranks below it wait for."""
        self.late = False
        """Whether a rank below it, or it itself, has been in one place for too long."""
        self.heard = time.monotonic()
        """When it last spoke."""
        self.gone = False
        """Whether its end of the connection is closed."""
        self.said_bye = False
        """Whether it is about to leave in order."""

    @property
    def silence(self) -> float:
        """Seconds since it spoke."""
        return time.monotonic() - self.heard

    def fileno(self) -> int:
        """Descriptor of the connection, for `select`."""
        return self._socket.fileno()

    def say(self, message: dict[str, Any], *, urgent: bool = False) -> None:
        """Sends a message now, or as soon as it takes it where that is urgent; else drops it when it takes nothing."""
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            if self._takes and (urgent or not self._outgoing):
                self._outgoing += line
                self._flush()

    def flush(self) -> None:
        """Sends what waits, as far as it takes it."""
        with self._lock:
            self._flush()

    def hear_of(self, place: Place, worst: Place | None = None, late: bool = False) -> None:
        """Takes in where it is, and whom the ranks below it wait for where it says so."""
        if worst is not None or self.worst.rank == place.rank:
            self.worst, self.late = worst or place, late
        self.place = place

    def _flush(self) -> None:
        try:
            while self._outgoing and self._takes:
                self._outgoing = self._outgoing[self._socket.send(self._outgoing) :]
        except BlockingIOError:
            return
        except OSError:  # it is gone, but what it said before that is still to be heard
            self._takes = False

    def listen(self) -> list[dict[str, Any]]:
        """What it has said since."""
        try:
            while not self.gone and len(self._incoming) < MOST_BYTES:
                data = self._socket.recv(MOST_BYTES)
                self.gone = not data
                self._incoming += data
        except BlockingIOError:
            pass
        except OSError:
            self.gone = True
        *lines, self._incoming = self._incoming.split(b"\n")
        if lines:
            self.heard = time.monotonic()
        return [json.loads(line) for line in lines]


def neighbours_of(links: Links) -> tuple[Neighbour | None, list[Neighbour]]:
    """A rank's parent and its children at the other ends of these connections, which are theirs from now on."""
    return _at_end_of(links.parent) if links.parent else None, [_at_end_of(child) for child in links.children]


def _at_end_of(link: Link) -> Neighbour:
    return Neighbour(link.rank, link.node, socket.socket(fileno=link.detach()))


def spoken(neighbours: Iterable[Neighbour], seconds: float) -> list[Neighbour]:
    """Those that have something to say or have gone, once there is one, at most after so many seconds."""
    poll, known = select.poll(), {}
    for neighbour in neighbours:
        if not neighbour.gone:
            known[neighbour.fileno()] = neighbour
            poll.register(neighbour, select.POLLIN)
    return [known[descriptor] for descriptor, _ in poll.poll(seconds * 1000)]

"""The nodes of a job meet at the first one: each compares its clock with that one's and hears whether all are fit.

    node i: connect -> "clock" x few -> "fit" or "unfit" -> "all", when all nodes are fit, or "some"

The first node answers all others, each over one connection, so nobody needs more than that one answer.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from common.limits import open_all_files_allowed

LOOKS = 5
"""Times that a node asks for the clock; the fastest answer tells most."""
PAUSE_SECONDS = 0.2
"""Between two tries to connect."""
LONGEST_ANSWER_SECONDS = 10.0
"""That the first node may take to tell the time."""


class Unreached(Exception):
    """The first node can't be reached."""


@dataclass(frozen=True)
class Clock:
    """How this node's clock differs from the first node's."""

    ahead: float
    """Seconds that it is ahead."""
    error: float
    """Most that `ahead` may be wrong by, seconds: half of the time the answer took."""


class Guest:
    """A node that comes to the first one; raises Unreached wherever it does not answer within `patience` seconds."""

    def __init__(self, address: str, port: int, patience: float):
        self._patience, self._deadline = patience, time.monotonic() + patience
        self._socket = self._connect(address, port)
        self._lines = self._socket.makefile("rb")

    def _connect(self, address: str, port: int) -> socket.socket:
        while True:
            try:
                return socket.create_connection((address, port), timeout=LONGEST_ANSWER_SECONDS)
            except OSError as error:  # the first node may be starting up, or its name not known yet
                if time.monotonic() > self._deadline:
                    raise Unreached(str(error)) from None
            time.sleep(PAUSE_SECONDS)

    def clock(self, now: Callable[[], float] = time.time) -> Clock:
        """Compares the clocks; a slow network makes the answer less sure, never wrong."""
        looks = [self._look(now) for _ in range(LOOKS)]
        return min(looks, key=lambda look: look.error)

    def _look(self, now: Callable[[], float]) -> Clock:
        started, before = time.perf_counter(), now()
        there = float(self._ask(b"clock", LONGEST_ANSWER_SECONDS))
        took = time.perf_counter() - started
        return Clock(before + took / 2 - there, took / 2)

    def all_fit(self, fit: bool) -> bool:
        """Tells whether this node is fit, and waits to hear whether all are."""
        answer = self._ask(b"fit" if fit else b"unfit", self._patience + LONGEST_ANSWER_SECONDS)
        return answer == b"all"

    def _ask(self, question: bytes, patience: float) -> bytes:
        try:
            self._socket.settimeout(patience)
            self._socket.sendall(question + b"\n")
            answer = self._lines.readline()
        except OSError as error:
            raise Unreached(str(error)) from None
        if not answer:
            raise Unreached("it closed the connection")
        return answer.strip()

    def close(self) -> None:
        """Goes home."""
        self._lines.close()
        self._socket.close()


def host(port: int, num_nodes: int, fit: bool, patience: float, now: Callable[[], float] = time.time) -> bool:
    """Receives the other nodes, on the first one; whether all came within `patience` seconds and are fit."""
    if num_nodes == 1:
        return fit
    open_all_files_allowed(num_nodes)
    return asyncio.run(_Host(num_nodes, fit, now).serve(port, patience))


class _Host:
    def __init__(self, num_nodes: int, fit: bool, now: Callable[[], float]):
        self._num_missing, self._fit, self._now = num_nodes - 1, fit, now
        self._answered = 0
        self._known, self._over = asyncio.Event(), asyncio.Event()

    async def serve(self, port: int, patience: float) -> bool:
        num_guests = self._num_missing
        server = await asyncio.start_server(lambda *ends: self._receive(num_guests, *ends), None, port, backlog=4096)
        self._settle()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), patience)
            self._fit = self._fit and self._num_missing == 0
            self._known.set()
            with contextlib.suppress(TimeoutError):  # those that come late are answered too
                await asyncio.wait_for(self._over.wait(), LONGEST_ANSWER_SECONDS if self._fit else patience)
        finally:
            server.close()
        return self._fit

    def _settle(self) -> None:
        if not self._fit or self._num_missing == 0:
            self._known.set()

    async def _receive(self, num_guests: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):  # a guest that says no more when all is over
            while line := (await reader.readline()).strip():
                if line == b"clock":
                    writer.write(f"{self._now()!r}\n".encode())
                elif line in (b"fit", b"unfit"):
                    self._num_missing -= 1
                    self._fit = self._fit and line == b"fit"
                    self._settle()
                    await self._known.wait()
                    writer.write(b"all\n" if self._fit else b"some\n")
                    await writer.drain()
                    self._answered += 1
                    if self._answered == num_guests:
                        self._over.set()
                await writer.drain()
        writer.close()

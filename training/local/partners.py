"""Copies of parts on another node's disk, over connections of their own: each rank sends one part and takes one.

rank 0 -> its partner on node 1, rank 8 -> that on node 2, rank 16 -> ... -> rank 0      (8 ranks to a node)
"""

import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from common.files import HashingWriter, open_file
from training.distributed import World
from training.local.nodes import Nodes
from training.plane import Link, answer, call, listen, publish

AT_ONCE = 8 * 2**20
"""Bytes of a message."""


class Partners:
    """The two connections of a rank."""

    def __init__(self, keeper: Link, kept: Link):
        """To the rank that keeps a copy of this one's part, and from the one of whose part this one keeps a copy."""
        self._keeper, self._kept = keeper, kept
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="partner")

    @classmethod
    def connect(cls, nodes: Nodes, world: World, patience: timedelta, minutes: float) -> "Partners | None":
        """Joins all ranks to their partners, which they look for so long; None where there is no other node.

        From then on a partner has `minutes` to answer.
        """
        if nodes.num == 1:
            return None
        store = dist.PrefixStore("partners", world.store)  # a world's of its own, see World.apart
        if world.is_main:
            store.set("key", secrets.token_hex(32))
        key, rank, deadline = store.get("key"), world.rank, time.monotonic() + patience.total_seconds()
        with listen() as listener, ThreadPoolExecutor(1) as other:
            publish(rank, listener, store)
            # both at once, for around the ring everybody would wait for the one before
            answered = other.submit(answer, rank, listener, [nodes.kept_by(rank)], key, deadline)
            keeper = call(rank, nodes.keeper_of(rank), store, key, deadline)
            (kept,) = answered.result()
        for link in (keeper, kept):
            link.set_timeout(60 * minutes)
        return cls(keeper, kept)

    def swap(self, folder: Path, name: str, pieces: Iterable[bytes | memoryview], digest: str) -> None:
        """Sends the part of that name, and writes the part that comes into the folder.

        Raises OSError when it cannot be written or comes out otherwise than it was sent; PeerLost when a partner left.
        """
        sent = self._thread.submit(self._send, name, pieces, digest)
        self._keep(folder)
        sent.result()

    def close(self) -> None:
        """Ends both."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for link in (self._keeper, self._kept):
            link.connection.close()

    def _send(self, name: str, pieces: Iterable[bytes | memoryview], digest: str) -> None:
        self._keeper.send("copy", (name, digest))
        try:
            for piece in pieces:
                for first in range(0, len(piece), AT_ONCE):
                    self._keeper.connection.send_bytes(memoryview(piece)[first : first + AT_ONCE])
            self._keeper.connection.send_bytes(b"")
        except OSError as error:
            raise self._keeper.lost("copy", error) from None

    def _keep(self, folder: Path) -> None:
        name, digest = self._kept.receive("copy")
        messages = iter(self._receive, b"")
        try:
            with HashingWriter(folder / name) as file:
                for message in messages:
                    file.write(message)
        finally:
            for _ in messages:  # a sender that nobody listens to would wait for ever
                pass
        if file.digest != digest:
            raise OSError(f"{folder / name}: the copy of rank {self._kept.rank}'s part has another checksum")

    def _receive(self) -> bytes:
        try:
            return self._kept.connection.recv_bytes()
        except (OSError, EOFError) as error:
            raise self._kept.lost("copy", error) from None


def pieces_from(path: Path) -> Iterator[bytes]:
    """A file, piece by piece."""
    with open_file(path) as file:
        while piece := file.read(AT_ONCE):
            yield piece

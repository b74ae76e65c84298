"""What ranks agree upon from host to host: counts, stops, choices; apart from the fabric that carries tensors.

    rank 0 -- 1 .. 16,  1 -- 17 .. 32,  ...      values go up the tree and are joined, the result comes down

A rank talks to its parent and at most FAN_OUT children, so sockets and messages of a rank do not grow with their
number, and a result is there after a few hops (4 for 16,384 ranks) without a full mesh of connections. Exchanges run
in a thread of their own, in the order they were begun, so that a result can be asked for long after. Every exchange
has a deadline, and says which rank it waited for. Sums are joined in the order of the tree, the same every time.

Addresses are found through the store of the process group; connections are authenticated by a key of the run, since
what travels is pickled.
"""

import dataclasses
import errno
import os
import pickle
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import psutil
import torch.distributed as dist

FAN_OUT = 16
"""Children of a rank. Fewer make the tree deeper, more make the busiest rank slower; 16 ranks are two nodes."""
HELLO_SECONDS = 10.0
"""How long an address may take to answer before the next one is tried."""
GONE = (errno.ENOTCONN, errno.EBADF)
"""What closing a connection answers whose other end has closed it already."""


class PeerLost(RuntimeError):
    """A rank that should have taken part in an exchange has left or does not answer."""


def node_name() -> str:
    """Name of this machine, as Slurm calls it where it does."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def parent_of(rank: int) -> int | None:
    """The rank that `rank` hands its values to; None for rank 0."""
    return (rank - 1) // FAN_OUT if rank else None


def children_of(rank: int, size: int) -> range:
    """The ranks that hand theirs to `rank` of `size`."""
    return range(rank * FAN_OUT + 1, min(rank * FAN_OUT + FAN_OUT + 1, size))


class Pending:
    """A result that is on its way."""

    def __init__(self, future: "Future[Any]"):
        self._future = future

    def result(self) -> Any:
        """Waits for it. PeerLost when a rank has left or the deadline passed."""
        return self._future.result()


class Plane:
    """Exchanges between all ranks; every rank calls the same ones in the same order."""

    def __init__(self, rank: int, size: int, links: "Links | None" = None):
        assert size == 1 or links is not None, "several ranks need links between them"
        self.rank, self.size = rank, size
        self._links = links
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plane") if links else None
        self._count = 0

    @classmethod
    def connect(cls, rank: int, size: int, store: Any, timeout: timedelta) -> "Plane":
        """Joins rank to its neighbours, which find each other through `store` (torch.distributed's)."""
        return cls(rank, size, Links.connect(rank, size, store, timeout.total_seconds()) if size > 1 else None)

    def set_timeout(self, timeout: timedelta) -> None:
        """From now on an exchange that takes longer raises PeerLost."""
        if self._links:
            self._links.set_timeout(timeout.total_seconds())

    def begin_sum(self, values: Sequence[float]) -> Pending:
        """Begins a sum of `values` over the ranks, in float64; its result is a list."""
        return self._begin("sum", list(map(float, values)), _added)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of `values` over the ranks, in float64."""
        return self.begin_sum(values).result()

    def max(self, values: Sequence[float]) -> list[float]:
        """Maxima of `values` over the ranks."""
        return self._begin("max", list(map(float, values)), _larger).result()

    def join(self, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """The values of all ranks combined two at a time, lower ranks first, on every rank.

        What `combine` returns should be no larger than what it takes, else messages grow with the ranks.
        """
        return self._begin("join", value, combine).result()

    def from_main(self, value: Any) -> Any:
        """Rank 0's `value`, on every rank; any object that pickles."""
        return self._begin("from_main", value if self.rank == 0 else None, _first).result()

    def gather_to_main(self, value: Any) -> list[Any] | None:
        """`value` of every rank in rank order on rank 0, None on the others."""
        gathered = self._begin("gather", {self.rank: value}, _united, keep_at_main=True).result()
        return [gathered[rank] for rank in range(self.size)] if self.rank == 0 else None

    def barrier(self) -> None:
        """Returns once every rank has come here."""
        self.sum([])

    def close(self) -> None:
        """Ends the thread and the connections."""
        if self._links and self._thread:
            self._links.close()
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _begin(self, kind: str, value: Any, combine: Callable[[Any, Any], Any], keep_at_main: bool = False) -> Pending:
        if self._links is None or self._thread is None:
            done: Future[Any] = Future()
            done.set_result(value)
            return Pending(done)
        self._count += 1
        label = f"{kind} {self._count}"
        return Pending(self._thread.submit(self._links.exchange, label, value, combine, keep_at_main))


def _added(a: list[float], b: list[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _larger(a: list[float], b: list[float]) -> list[float]:
    return [max(x, y) for x, y in zip(a, b, strict=True)]


def _first(a: Any, b: Any) -> Any:
    return a


def _united(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    return a | b


@dataclasses.dataclass
class Link:
    """A connection to one neighbour."""

    rank: int
    connection: Connection
    node: str = ""
    """Name of its machine."""

    @property
    def name(self) -> str:
        """The rank and its node, in words."""
        return f"rank {self.rank} on node {self.node}"

    def detach(self) -> int:
        """The connection's descriptor, which is the caller's from now on."""
        descriptor = os.dup(self.connection.fileno())
        self.connection.close()
        return descriptor

    def set_timeout(self, seconds: float) -> None:
        """Bounds every read and write; the options belong to the socket, whichever descriptor names it."""
        limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6) or 1)
        with socket.socket(fileno=os.dup(self.connection.fileno())) as handle:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, label: str, value: Any) -> None:
        """Sends a value of the exchange `label`. PeerLost when it cannot in time."""
        try:
            self.connection.send_bytes(pickle.dumps((label, value)))
        except OSError as error:
            raise self.lost(label, error) from None

    def receive(self, label: str) -> Any:
        """The neighbour's value of the exchange `label`. PeerLost when it does not come in time."""
        try:
            theirs, value = pickle.loads(self.connection.recv_bytes())
        except (OSError, EOFError) as error:
            raise self.lost(label, error) from None
        assert theirs == label, f"rank {self.rank} is at exchange {theirs}, this rank at {label}"
        return value

    def lost(self, label: str, error: Exception) -> PeerLost:
        """What an error of the connection means."""
        if isinstance(error, BlockingIOError):
            return PeerLost(f"{self.name} did not answer in time ({label})")
        return PeerLost(f"{self.name} has left ({label})")


class Links:
    """The connections of one rank in the tree."""

    def __init__(self, parent: Link | None, children: list[Link]):
        self.parent, self.children = parent, children

    @classmethod
    def connect(cls, rank: int, size: int, store: Any, seconds: float, name: str = "plane") -> "Links":
        """Finds the neighbours through `store`; `name` tells several such trees apart.

        PeerLost, which names them, when some of them do not come in time.
        """
        store = dist.PrefixStore(name, store)
        store.add("come", 1)
        if rank == 0:
            store.set("key", secrets.token_hex(32))
        children, deadline = children_of(rank, size), time.monotonic() + seconds
        listener = listen() if children else None
        try:
            if listener:
                publish(rank, listener, store)
            key = _said(store, "key", by=0)
            above = parent_of(rank)
            parent = None if above is None else call(rank, above, store, key, deadline)
            links = cls(parent, answer(rank, listener, children, key, deadline) if listener else [])
        except Missing as missing:
            come = store.add("come", 0)
            raise PeerLost(f"{missing} within {seconds:.3g} s: {come} of {size} ranks have") from None
        finally:
            if listener:
                listener.close()
        links.set_timeout(seconds)
        return links

    def set_timeout(self, seconds: float) -> None:
        """From now on an exchange that takes longer raises PeerLost."""
        for link in self._all():
            link.set_timeout(seconds)

    def exchange(self, label: str, value: Any, combine: Callable[[Any, Any], Any], keep_at_main: bool) -> Any:
        """Up the tree and down again; nobody returns before all have come, so that a rank that left is noticed."""
        for child in self.children:
            value = combine(value, child.receive(label))
        if self.parent:
            self.parent.send(label, value)
            value = self.parent.receive(label)
        down = None if keep_at_main else value
        for child in self.children:
            child.send(label, down)
        return value

    def close(self) -> None:
        """Wakes whoever waits in a read or write, on both sides, and lets go."""
        for link in self._all():
            with socket.socket(fileno=os.dup(link.connection.fileno())) as handle:
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                except OSError as error:
                    if error.errno not in GONE:
                        raise
            link.connection.close()

    def _all(self) -> list[Link]:
        return [*([self.parent] if self.parent else []), *self.children]


class Missing(PeerLost):
    """Ranks that have not come."""

    def __init__(self, ranks: Sequence[int]):
        super().__init__(f"{', '.join(map(_home, ranks))} has not come")


def _home(rank: int) -> str:
    """A rank that nobody has heard of yet, and its node as far as the launcher's numbers tell."""
    size, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if not local.isdecimal() or not int(local):
        return f"rank {rank}"
    node = node_name() if local == size else f"number {rank // int(local)} of the job"
    return f"rank {rank} on node {node}"


def _said(store: Any, key: str, by: int) -> bytes:
    """What that rank has put into the store, once it has."""
    try:
        return store.get(key)
    except dist.DistStoreError:  # it waited in vain
        raise Missing([by]) from None


def listen() -> socket.socket:
    """A socket that ranks of other machines may call."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=FAN_OUT, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=FAN_OUT)


def publish(rank: int, listener: socket.socket, store: Any) -> None:
    """Says through the store where `rank` can be called."""
    store.set(f"address-{rank}", pickle.dumps(list(_addresses(listener))))


def _addresses(listener: socket.socket) -> Iterator[tuple[str, int]]:
    """Where other machines may reach this one, the likeliest first, and where this machine may."""
    port = listener.getsockname()[1]
    wanted = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")
    found = {
        name: [each.address for each in addresses if each.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    for name in sorted(found, key=lambda name: (name not in wanted, found[name][:1] == ["127.0.0.1"], name)):
        for address in found[name]:
            yield address, port
    yield socket.gethostname(), port


def call(rank: int, other: int, store: Any, key: bytes, deadline: float) -> Link:
    """Connects `rank` to `other`, at the first of its addresses where it and nobody else answers."""
    addresses = pickle.loads(_said(store, f"address-{other}", by=other))
    while time.monotonic() < deadline:
        for address in addresses:
            try:
                handle = socket.create_connection(address, timeout=HELLO_SECONDS)
            except OSError:  # another machine's address, or one that this machine cannot reach
                continue
            link = Link(other, Connection(_detached(handle)))
            if _greet(link, key, rank, calling=True) == other:
                return link
            link.connection.close()
        time.sleep(0.2)
    raise PeerLost(f"rank {other} cannot be reached at {', '.join(f'{host}:{port}' for host, port in addresses)}")


def answer(rank: int, listener: socket.socket, children: Sequence[int], key: bytes, deadline: float) -> list[Link]:
    """Waits until all of these ranks have called `rank`."""
    links: dict[int, Link] = {}
    while len(links) < len(children):
        listener.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            handle, _ = listener.accept()
        except TimeoutError:
            raise Missing(sorted(set(children) - set(links))) from None
        link = Link(-1, Connection(_detached(handle)))
        child = _greet(link, key, rank, calling=False)
        if child is not None and child in children:
            link.rank = child
            links[child] = link
        else:
            link.connection.close()
    return [links[child] for child in children]


def _greet(link: Link, key: bytes, rank: int, *, calling: bool) -> int | None:
    """Proves to each other that both are of this run, and returns the other's rank; None for strangers.

    Each says its node too, which the link keeps.
    """
    link.set_timeout(HELLO_SECONDS)
    steps = [answer_challenge, deliver_challenge] if calling else [deliver_challenge, answer_challenge]
    try:
        for step in steps:
            step(link.connection, key)
        link.connection.send_bytes(f"{rank} {node_name()}".encode())
        theirs, _, link.node = link.connection.recv_bytes(400).decode().partition(" ")
        return int(theirs)
    except (OSError, EOFError, AuthenticationError, ValueError):
        return None


def _detached(handle: socket.socket) -> int:
    handle.setblocking(True)
    return handle.detach()

"""A server of a loaded model, from its socket to its end.

socket (taken before anything slow) -> load -> worker and uvicorn -> requests -> signal -> all end
"""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from common.mistakes import Mistake
from launcher.serving.api import Server, app_of
from launcher.serving.loaded import Loaded
from launcher.serving.worker import MOST_ROWS, Worker

SECONDS_TO_START = 60.0
SECONDS_TO_END = 2
"""For those that were cut off to be told so."""


def open_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, which nobody can connect to yet; port 0 takes a free one. Mistake when it is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family)
    except OSError as error:
        raise Mistake(f"--host: {host} is no address of this machine ({error.strerror}); try 127.0.0.1") from None
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise Mistake(
            f"--port: {host}:{port} cannot be listened on ({error.strerror}); choose another with --port, 0 for any"
        ) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """Where a socket is to be asked."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Uvicorn(uvicorn.Server):
    """Uvicorn that leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def serving(
    loaded: Loaded, opened: socket.socket, name: str, *, chat: bool = False, batch_size: int = MOST_ROWS
) -> Iterator[str]:
    """Answers requests for as long as the block lasts, in threads of its own; gives the address."""
    worker = Worker(loaded, batch_size)
    app = app_of(Server(worker, name, chat))
    how = {"log_config": None, "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": SECONDS_TO_END}
    server = _Uvicorn(uvicorn.Config(app, **how))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]}, name="http", daemon=True)
    thread.start()
    try:
        with worker:  # it ends first: what it writes is told through the server's loop
            _wait_until(server, thread)
            yield address_of(opened)
    finally:
        with _without_a_word():  # requests that are cut off are no faults
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def _without_a_word() -> Iterator[None]:
    """Keeps uvicorn's faults off the terminal meanwhile."""
    log = logging.getLogger("uvicorn.error")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _wait_until(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the server did not start")
        time.sleep(0.01)

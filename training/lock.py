"""One writer per run: two launches of the same run would overwrite each other's checkpoints and metrics.

The lock keeps a second launch out. A scheduler's job that starts again is no second launch: it takes the run over from
its own earlier attempt, of which a process may still live on a node that was cut off (see fence.py).
"""

import contextlib
import dataclasses
import errno
import fcntl
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from common.files import open_descriptor
from common.mistakes import Mistake
from training import fence
from training.distributed import World
from training.state.together import on_main

LOG = logging.getLogger("training.lock")

NAME, LAUNCH = "lock", "launch-lock"
WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system answers that knows no locks (Lustre without its flock option, some NFS)."""
TAKEOVER_SECONDS = 5 * fence.POLL_SECONDS
"""How long an earlier attempt has to see that it is superseded; one that is cut off may hold its lock longer."""


def refuse_second_writer(folder: Path) -> None:
    """Raises ValueError when a process, of this machine or another, is training the run in `folder`."""
    if (folder / NAME).exists():
        descriptor, holder = _acquire(folder / NAME)
        if descriptor is not None:
            os.close(descriptor)
        _refuse(folder, holder)


@contextlib.contextmanager
def sole_launch(folder: Path) -> Iterator[None]:
    """Holds the run for one launch that is about to write its config; its ranks take their lock once they have read it.

    Raises ValueError when another launch, or ranks of one, are at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, holder = _acquire(folder / LAUNCH)
    _refuse(folder, holder)
    try:
        refuse_second_writer(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextlib.contextmanager
def sole_writer(folder: Path, world: World) -> Iterator[World]:
    """Holds the run on rank 0 and gives the ranks, with the attempt they now are; all call it together.

    The system frees the lock when the process ends. Raises ValueError on every rank when another launch holds it.
    """
    attempt = world.from_main(fence.new_attempt())
    descriptor, holder = _acquire(folder / NAME, attempt) if world.is_main else (None, "")
    earlier = fence.is_scheduled(attempt) and re.search(r"attempt \d+\.\d+$", holder)
    _refuse(folder, world.from_main("" if earlier else holder))
    try:
        on_main(world, lambda: fence.take(folder, attempt))
        if earlier:
            descriptor = _wait_for(folder / NAME, attempt)
        yield dataclasses.replace(world, attempt=world.from_main(attempt))  # nobody goes on before the run is ours
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _wait_for(path: Path, attempt: str) -> int | None:
    """The locked file, or None when a superseded attempt keeps it from a node that nobody can reach."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while True:
        descriptor, holder = _acquire(path, attempt)
        if not holder or time.monotonic() > deadline:
            return descriptor
        time.sleep(0.2)


def _refuse(folder: Path, holder: str) -> None:
    if holder:
        raise Mistake(f"{folder}: {holder} is training this run already; wait for it or stop it first")


def _acquire(path: Path, attempt: str = "") -> tuple[int | None, str]:
    """The locked file and no holder, or no file and who holds it."""
    descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in WITHOUT_LOCKS:
            LOG.warning(f"{path}: this file system has no locks, so nothing keeps a second launch out")
            return None, ""
        if not isinstance(error, BlockingIOError):
            raise
        return None, holder or "another process"
    os.ftruncate(descriptor, 0)
    whose = f", attempt {attempt}" if attempt else ""
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}{whose}\n".encode(), 0)
    return descriptor, ""

"""Which start of a run may write: a later start takes the run over, and what is left of an earlier one must stop.

A node that was cut off from the scheduler keeps its processes, while the job starts again elsewhere. Each start is an
*attempt* with a name of its own (`JOB.RESTART` under Slurm), which it writes to RUN_DIR/attempt before it looks for a
checkpoint. Whoever finds another name there has been superseded:

- a checkpoint is renamed into place only out of a folder that bears the attempt's name, and taking a run over
  renames such folders of others away, so that a rename that comes late finds nothing to rename;
- every node looks at the file every few seconds and leaves when it is no longer its own.
"""

import contextlib
import errno
import logging
import os
import re
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from common.files import discard, read_file, write_whole

LOG = logging.getLogger("training.fence")

NAME = "attempt"
VARIABLE = "SHARDLINE_ATTEMPT"
"""Environment variable by which a scheduler's job names its attempt: `JOB.RESTART`."""
POLL_SECONDS = 2.0
SUPERSEDED = 76
"""Exit status of a process that another attempt has superseded."""
IMMOVABLE = {errno.EPERM, errno.EACCES, errno.EBUSY}
"""What a file system answers about files that nobody may rename, a late writer of them no more than who takes over."""
_SCHEDULED = re.compile(r"(\d+)\.(\d+)")


class Superseded(RuntimeError):
    """Another start of the run has taken it over."""


def new_attempt() -> str:
    """Name of this start: the one it was given by whoever started it, or a random one."""
    return os.environ.get(VARIABLE) or random_attempt()


def random_attempt() -> str:
    """A name that no other start has."""
    return f"local-{uuid.uuid4().hex[:12]}"


def is_scheduled(attempt: str) -> bool:
    """Whether a scheduler named the attempt, and so starts no two at a time."""
    return _SCHEDULED.fullmatch(attempt) is not None


def read(run_dir: Path) -> str:
    """Name of the attempt that holds the run, empty when none ever did."""
    path = run_dir / NAME
    return read_file(path).decode(errors="replace").strip() if path.exists() else ""


def take(run_dir: Path, attempt: str) -> None:
    """Makes `attempt` the one that may write, and puts half-written checkpoints of others out of their reach.

    Raises Superseded when a later restart of the same job holds the run already.
    """
    mine, theirs = _SCHEDULED.fullmatch(attempt), _SCHEDULED.fullmatch(read(run_dir))
    if mine and theirs and mine[1] == theirs[1] and int(theirs[2]) > int(mine[2]):
        raise Superseded(_sentence(run_dir, attempt))
    write_whole(run_dir / NAME, f"{attempt}\n".encode())
    for leftover in (run_dir / "checkpoints").glob(".tmp-*"):
        _clear_away(leftover)


def _clear_away(leftover: Path) -> None:
    gone = leftover.with_name(f".tmp-gone-{uuid.uuid4().hex}")
    try:
        leftover.rename(gone)
    except FileNotFoundError:  # its writer has just renamed it
        return
    except OSError as error:
        if error.errno not in IMMOVABLE:
            raise
        LOG.warning(f"{leftover}: what a save has left cannot be moved away ({error.strerror})")
        return
    discard(gone)


def check(run_dir: Path, attempt: str) -> None:
    """Raises Superseded when another attempt holds the run. An empty `attempt` belongs to no run and is never so."""
    if attempt and read(run_dir) != attempt:
        raise Superseded(_sentence(run_dir, attempt))


def is_lost(run_dir: Path, attempt: str) -> bool:
    """Whether another attempt holds the run, as far as the file system can tell."""
    try:
        check(run_dir, attempt)
    except Superseded:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def watched(run_dir: Path, attempt: str) -> Iterator[None]:
    """Ends the process, wherever it hangs, within seconds of another attempt taking the run over."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            try:
                check(run_dir, attempt)
            except Superseded as error:
                print(error, file=sys.stderr, flush=True)
                os._exit(SUPERSEDED)
            except OSError as error:  # a file system that hangs or blinks says nothing about attempts
                print(f"{run_dir / NAME}: {error.strerror}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, name="fence", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _sentence(run_dir: Path, attempt: str) -> str:
    return f"{run_dir}: attempt {read(run_dir)} has taken this run over from {attempt}, which leaves it alone"

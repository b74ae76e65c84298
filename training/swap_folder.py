"""A folder of one process's own on a local disk, for what is offloaded to NVMe; gone when the process is.

    parent/shardline-swap-TOKEN/   locked while its process lives -> removed by it, or by the next start on the node

Two runs, or two ranks, that name the same disk never touch each other's files.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from common.mistakes import Mistake

PREFIX = "shardline-swap-"
_LOCK = "lock"
_PROBE = "probe"


class SwapFolder:
    """The folder, from when it is made until it is removed."""

    def __init__(self, parent: Path, key: str):
        """Makes it below `parent`, which the config's `key` names. Mistake when nothing can be swapped to there."""
        if not parent.is_dir():
            raise Mistake(f"{key}: {parent} is no folder on this node; name one on a local disk of every node")
        _sweep(parent)
        hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
        self._lock = _locked(hidden / _LOCK, os.O_CREAT)
        assert self._lock is not None, f"{hidden} is another's"
        # under its name it is locked already, so that nobody takes it for one that was left behind
        self.path = hidden.with_name(hidden.name.removeprefix("."))
        hidden.rename(self.path)
        try:
            os.close(os.open(self.path / _PROBE, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
        except OSError as error:
            self.remove()
            if error.errno != errno.EINVAL:
                raise
            raise Mistake(
                f"{key}: the file system of {parent} knows no direct access (O_DIRECT), which swapping takes; name a "
                "folder on a local disk"
            ) from None

    def remove(self) -> None:
        """Removes it with all it holds; a second time nothing happens."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)  # one that starts may look at the lock just now
            os.close(self._lock)
            self._lock = None


def _locked(path: Path, flags: int = 0) -> int | None:
    """A lock that lives as long as this process; None where another process has it."""
    descriptor = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Removes what processes that were killed have left; ranks that start together may meet here."""
    for folder in (*parent.glob(f"{PREFIX}*"), *parent.glob(f".{PREFIX}*")):
        if not os.access(folder / _LOCK, os.W_OK):
            continue  # another user's, or gone by now
        try:
            lock = _locked(folder / _LOCK)
        except FileNotFoundError:
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

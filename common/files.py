"""Files that are whole or not there: checksummed while written, synced to the disk, renamed into place.

    temporary_name(path) -> path of a file of this one attempt -> os.replace -> path
    folder_aside(path)   -> the same of a folder of files

Two attempts at the same file, such as that of a worker which outlived its build and that of the next build, never
share a temporary file: whichever is renamed last, the result is whole.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import xxhash

from common.mistakes import Mistake

_TEMPORARY = re.compile(r"(.+)\.\d+-[0-9a-f]{12}\.tmp")


def temporary_name(path: Path) -> Path:
    """Where this attempt at a file is written; no other attempt has that name."""
    return path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(6)}.tmp")


def meant_name(name: str) -> str | None:
    """Name of the file that a temporary one was to become, None if `name` is not one of `temporary_name`."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """A file to write; it gets its name when the block ends without an error and is deleted otherwise.

    An OSError names the file, also where the system does not, as on a full disk.
    """
    temporary = temporary_name(path)
    try:
        with naming(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file the name of the one being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a disk answers that has no room."""
SPARE_BYTES = 32 * 2**20
"""Room for small files beside those whose sizes are known."""
HASHED_BYTES = 2**20
"""Bytes that are copied and hashed at once: few enough to stay in a core's cache in between."""
STAGED_BYTES, ALIGNED_BYTES = 16 * 2**20, 4096
"""Bytes that go to the disk in one piece, and what lengths, places and addresses of direct writes are multiples of."""


def refuse_foreign(out: Path, marker: str, what: str) -> None:
    """ValueError when `out` is there, is not empty and has no file `marker`: then it is no `what` folder of ours."""
    if not out.exists() or (out.is_dir() and ((out / marker).is_file() or not any(out.iterdir()))):
        return
    raise Mistake(f"{out}: it exists and is no folder shardline {what}; choose another name or remove it")


@contextlib.contextmanager
def folder_aside(out: Path, num_bytes: int = 0) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name on leaving, whole and durable; gone if something is raised.

    A folder that has the name is replaced. `num_bytes` is what will be written at least. Raises ValueError, which says
    how much is needed, when the disk has no room for that or is full before the end.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial-{os.getpid()}")
    _sweep(out)
    refuse_without_room(out, num_bytes)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    lock = os.open(aside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # where nothing can be locked, nothing is swept either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield aside
        _make_durable(aside)
        _put_in_place(aside, out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        shutil.rmtree(aside, ignore_errors=True)
        raise Mistake(_no_room(out, num_bytes, shutil.disk_usage(out.parent).free)) from error
    finally:
        os.close(lock)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Removes what killed attempts at the same folder left; one that is being written is locked by its writer."""
    for path in out.parent.iterdir():
        if not path.name.startswith(f".{out.name}.partial-") or not path.is_dir():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def refuse_without_room(out: Path, num_bytes: int) -> None:
    """ValueError, which says how much is needed, when the disk of `out` has no room for so many bytes."""
    if (free := shutil.disk_usage(out.parent).free) < num_bytes + SPARE_BYTES:
        raise Mistake(_no_room(out, num_bytes, free))


def _no_room(out: Path, num_bytes: int, free: int) -> str:
    needed = (num_bytes + SPARE_BYTES) / 1e9
    return (
        f"{out}: no room for it on its disk: {needed:.3g} GB are needed and {free / 1e9:.3g} GB are free (or a quota "
        "allows less); free some or name a folder on another disk"
    )


def _put_in_place(aside: Path, out: Path) -> None:
    """The folder takes its name; one it replaces is gone only once it has."""
    if not out.exists():
        aside.rename(out)
        sync_folder(out.parent)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        aside.rename(out)
    except BaseException:
        old.rename(out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(old)


def _make_durable(folder: Path) -> None:
    """All files readable by whom one made the ordinary way is, and on disk for good."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            path.chmod(0o666 & ~mask)
        sync_folder(path)


def sync_file(path: Path) -> None:
    """Makes what was appended to a file survive a power cut."""
    with naming(path):
        _sync(path)


def sync_folder(folder: Path) -> None:
    """Makes names given inside a folder survive a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(paths: Iterable[Path]) -> None:
    """Deletes the temporary files among `paths`, which attempts that were killed have left."""
    for path in paths:
        if meant_name(path.name) is not None:
            path.unlink(missing_ok=True)


def discard(path: Path) -> bool:
    """Deletes a file or folder as far as it can be; whether nothing is left (open files on NFS stay for a while)."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):  # said by what is returned
            path.unlink()
    return not os.path.lexists(path)


def write_whole(path: Path, data: bytes) -> str:
    """Puts `data` at `path` at once, replacing what was there, and returns its xxh3_128."""
    with written_aside(path) as file:
        file.write(data)
    return xxhash.xxh3_128_hexdigest(data)


def open_file(path: Path) -> IO[bytes]:
    """A file to be read. OSError, of the kind that a folder gives, for a pipe or a device, which may never end."""
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def open_descriptor(path: Path, flags: int) -> int:
    """Its descriptor, by the flags of open(2); the same OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise IsADirectoryError(errno.EISDIR, f"it is {what}, where a file belongs", str(path))
    return descriptor


def read_file(path: Path) -> bytes:
    """All of a file; OSError as of `open_file`."""
    with open_file(path) as file:
        return file.read()


class HashingWriter:
    """A new binary file; `digest` is the xxh3_128 of what was written once it is closed, synced to the disk.

    Bytes go past the page cache where the file system allows that (O_DIRECT): a copy of gigabytes in the cache costs
    the cores more than the disk, and makes everybody else's files wait for it. Large writes keep no Python thread from
    running.
    """

    def __init__(self, path: Path):
        self._file = open_direct(path)
        self._memory = np.frombuffer(mmap.mmap(-1, STAGED_BYTES), np.uint8)  # aligned to a page, as the disk wants it
        self._filled = 0
        self._hash = xxhash.xxh3_128()
        self.digest = ""

    def write(self, data) -> int:
        """Takes all of `data` (any buffer) and returns its length in bytes."""
        view, done = np.frombuffer(data, np.uint8), 0
        while done < len(view):
            count = min(len(view) - done, STAGED_BYTES - self._filled, HASHED_BYTES)
            piece = view[done : done + count]
            np.copyto(self._memory[self._filled : self._filled + count], piece)
            self._hash.update(piece.data)
            done += count
            self._filled += count
            if self._filled == STAGED_BYTES:
                self._put()
        return len(view)

    def _put(self) -> None:
        staged = self._memory[: self._filled].data
        if len(staged) % ALIGNED_BYTES:  # the end of the file
            _through_cache(self._file)
        done = 0
        while done < len(staged):
            try:
                done += os.write(self._file, staged[done:])
            except OSError as error:
                if error.errno != errno.EINVAL or not _through_cache(self._file):
                    raise
        self._filled = 0

    def __enter__(self) -> "HashingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._put()
                os.fsync(self._file)
                self.digest = self._hash.hexdigest()
        finally:
            os.close(self._file)


def open_direct(path: Path) -> int:
    """A new file to be written past the page cache, in aligned pieces, where its file system allows that."""
    how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, how | os.O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, how, 0o666)


def _through_cache(file: int) -> bool:
    """Has what is written from now on go through the page cache; whether it did not before."""
    how = fcntl.fcntl(file, fcntl.F_GETFL)
    fcntl.fcntl(file, fcntl.F_SETFL, how & ~os.O_DIRECT)
    return bool(how & os.O_DIRECT)


def checksum(path: Path) -> str:
    """xxh3_128 of a file, read in pieces of 8 MiB."""
    digest = xxhash.xxh3_128()
    with open_file(path) as file:
        while piece := file.read(8 * 2**20):
            digest.update(piece)
    return digest.hexdigest()

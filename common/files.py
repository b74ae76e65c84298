"""Files that are whole or not there: checksummed while written, synced to the disk, renamed into place.

    temporary_name(path) -> path of a file of this one attempt -> os.replace -> path

Two attempts at the same file, such as that of a worker which outlived its build and that of the next build, never
share a temporary file: whichever is renamed last, the result is whole.
"""

import contextlib
import io
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import xxhash

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


def write_whole(path: Path, data: bytes) -> str:
    """Puts `data` at `path` at once, replacing what was there, and returns its xxh3_128."""
    with written_aside(path) as file:
        file.write(data)
    return xxhash.xxh3_128_hexdigest(data)


class HashingWriter(io.RawIOBase):
    """A new binary file; `digest` is the xxh3_128 of what was written once it is closed, synced to the disk.

    The first OSError is kept and raised on leaving, and nothing is written after it: writers in C++ such as
    torch.save's cannot carry a Python exception through.
    """

    def __init__(self, path: Path):
        self._error: OSError | None = None
        self._hash = xxhash.xxh3_128()
        self.digest = ""
        self._file = path.open("wb", buffering=0)

    def writable(self) -> bool:
        """True: this is an output file."""
        return True

    def write(self, data) -> int:
        """Writes all of `data` (any buffer) and returns its length in bytes."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        try:
            done = 0
            while self._error is None and done < len(view):
                done += self._file.write(view[done:])
        except OSError as error:
            self._error = error
        return len(view)

    def __enter__(self) -> "HashingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None and self._error is None:
                os.fsync(self._file.fileno())
        except OSError as failure:
            self._error = failure
        self._file.close()
        if self._error is not None:
            raise self._error
        self.digest = self._hash.hexdigest()


def checksum(path: Path) -> str:
    """xxh3_128 of a file, read in pieces of 8 MiB."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(8 * 2**20):
            digest.update(piece)
    return digest.hexdigest()

"""Opens files where they lie, on this machine or elsewhere."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import fsspec

from common.mistakes import Mistake


def open_file(url: str) -> IO[bytes]:
    """Opens a file where it lies, unbuffered, without decompressing it.

    Raises ValueError naming the URL when a file elsewhere cannot be opened; so does reading it.
    """
    if "://" in url:
        return cast(IO[bytes], _RemoteFile(url))
    return Path(url).open("rb", buffering=0)


@contextlib.contextmanager
def remote(what: str) -> Iterator[None]:
    """Turns whatever the library for a remote file system raises into a sentence that begins with `what`."""
    try:
        yield
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise Mistake(f"{what}: {cause}; check the address, the credentials and the network") from None


class _RemoteFile(io.RawIOBase):
    """A file elsewhere, all of whose errors are sentences that name it."""

    def __init__(self, url: str):
        super().__init__()
        self._what = f"{url}: cannot be read"
        with remote(self._what):
            self._file: IO[bytes] = fsspec.open(url, "rb").open()

    def read(self, size: int = -1) -> bytes:
        with remote(self._what):
            return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with remote(self._what):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()

"""Opens files where they lie: on this machine, or elsewhere by fsspec, whose errors become sentences or pass.

What may pass (a time-out, a connection reset, a server that answers 5xx or 429) is tried again, after a wait that
doubles each time. A file goes on at the byte it broke off at, so whoever reads it notices nothing.
"""

import contextlib
import errno
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from fsspec.core import url_to_fs

from common.mistakes import Mistake

Result = TypeVar("Result")

TRIES = 7
"""How often something is tried that may pass: for about a minute in all."""
FIRST_WAIT = 1.0
"""Seconds, on average, before the second try."""
PASSING_STATUS = {408, 425, 429, *range(500, 600)}
PASSING_ERRNO = {
    errno.EIO,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.ECONNABORTED,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
}
PASSING_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "EndpointConnectionError",
    "HTTPException",
    "ProtocolError",
    "ReadTimeoutError",
    "ResponseStreamingError",
}
"""Errors of the libraries behind fsspec (aiohttp, botocore, urllib3, http.client), which are not imported for this."""


def open_file(url: str, *, scattered: bool = False) -> IO[bytes]:
    """Opens a file where it lies, unbuffered, without decompressing it.

    Of one elsewhere some megabytes are read ahead, unless little is wanted of it and here and there (`scattered`).
    Raises ValueError naming the URL when a file elsewhere cannot be opened; so does reading it.
    """
    if "://" in url:
        return cast(IO[bytes], _RemoteFile(url, scattered))
    return Path(url).open("rb", buffering=0)


def patiently(what: str, call: Callable[[], Result]) -> Result:
    """Result of a call to a remote file system; ValueError that begins with `what` when it fails for good."""
    for tries_left in reversed(range(TRIES)):
        try:
            return call()
        except Exception as error:
            if not tries_left or not may_pass(error):
                raise _sentence(what, error) from None
        time.sleep(FIRST_WAIT * 2 ** (TRIES - 1 - tries_left) * random.uniform(0.5, 1.5))
    raise AssertionError


def _sentence(what: str, error: Exception) -> Mistake:
    cause = " ".join(str(error).split()) or type(error).__name__
    tried = f" (tried {TRIES} times)" if may_pass(error) else ""
    return Mistake(f"{what}: {cause}{tried}; check the address, the credentials and the network")


def may_pass(error: BaseException) -> bool:
    """Whether what a remote file system raised may be gone at the next try."""
    if (status := _status(error)) is not None:
        return status in PASSING_STATUS
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in PASSING_ERRNO
    return any(kind.__name__ in PASSING_NAMES for kind in type(error).__mro__)


def _status(error: Any) -> int | None:
    """Status of HTTP that an error tells, wherever its library keeps it."""
    response = getattr(error, "response", None)
    described = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    told = [described, *(getattr(error, name, None) for name in ("status", "status_code", "code"))]
    return next((status for status in told if isinstance(status, int) and 100 <= status < 600), None)


class _RemoteFile(io.RawIOBase):
    """A file elsewhere, all of whose errors are sentences that name it."""

    def __init__(self, url: str, scattered: bool):
        super().__init__()
        self._url, self._what = url, f"{url}: cannot be read"
        self._options = {"cache_type": "none"} if scattered else {}
        self._file: Any = None
        self._position = 0
        patiently(self._what, self._opened)

    def _opened(self) -> Any:
        """The file, opened anew after an error and at the place it is to be read at."""
        if self._file is None:
            system, path = url_to_fs(self._url)
            self._file = system.open(path, "rb", **self._options)
        here = self._file.tell()
        if here != self._position and self._file.seekable():
            self._file.seek(self._position)
        while (here := self._file.tell()) < self._position:
            if not self._file.read(min(self._position - here, 1 << 20)):
                raise ConnectionError(f"it ends at byte {here}")
        return self._file

    def _tried(self, call: Callable[[Any], Result]) -> Result:
        def once() -> Result:
            try:
                return call(self._opened())
            except Exception:
                self._discard()
                raise

        return patiently(self._what, once)

    def _discard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(Exception):  # it is broken, and what it says of that is known
                file.close()

    def read(self, size: int = -1) -> bytes:
        pieces: list[bytes] = []
        left = size
        while left and (piece := self._read_some(left)):
            pieces.append(piece)
            left -= len(piece) if size >= 0 else 0
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_some(self, size: int) -> bytes:
        def once(file: Any) -> bytes:
            found = file.read(size)
            if not found and size and self._position < (getattr(file, "size", None) or 0):
                raise ConnectionError(f"it ends at byte {self._position} of {file.size}")
            return found

        found = self._tried(once)
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._position = self._tried(lambda file: file.seek(offset, io.SEEK_END))
        else:
            self._position = offset + (self._position if whence == io.SEEK_CUR else 0)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file is None or self._file.seekable()

    def close(self) -> None:
        if not self.closed and getattr(self, "_file", None) is not None:
            self._file.close()
        super().close()

"""Parts of a compressed file: gzip of many members, zstd of many frames, each of which is decompressed by itself.

    has_members(file)            looks at the beginning, and for zstd's seek table at the end
    part_of(file, start, stop)   the members that begin in a range of bytes, found by the range itself

A plan cuts such a file into equal ranges of bytes. The reader of a range looks for the first member that begins in
it, so that each byte is looked at once for that: what looks like a head is one if its member can be read to its end
and another one, or nothing, follows. A range in which no member begins is empty, and the one before it goes on.
"""

import io
import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple, cast

from data_pipeline.building.compressed import read_blocks

GZIP_PROBE, ZSTD_PROBE = 1 << 20, 1 << 23
"""Bytes within which the first member or frame has to end for a file to count as one of many."""
SEARCHED_BYTES = 1 << 20
MAX_BLOCK = 1 << 17
"""Bytes of a zstd block at most."""
HEADS = {
    "gzip": re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
}
"""How members and frames begin (RFC 1952; RFC 8878, sections 3.1.1 and 3.1.2)."""
HEAD_BYTES = 4
SEEK_TABLE = b"\xb1\xea\x92\x8f"
"""The end of a file in zstd's seekable format."""


class Part(NamedTuple):
    """What is in a range of a compressed file, decompressed."""

    inside: Iterator[bytes]
    """Blocks of the members that begin in it; to be read first."""
    beyond: Iterator[bytes]
    """Blocks of all that follows."""


def has_members(file: IO[bytes], compression: str) -> bool:
    """Whether a file consists of many members, as far as its first ones tell."""
    if compression == "gzip":
        end = _gzip_end(file, 0, GZIP_PROBE)
        return end is not None and _begins(file, end, compression)
    end = _zstd_end(file, 0, ZSTD_PROBE)
    if end is not None:
        return _begins(file, end, compression)
    size = file.seek(0, io.SEEK_END)
    file.seek(max(size - len(SEEK_TABLE), 0))
    return file.read(len(SEEK_TABLE)) == SEEK_TABLE


def part_of(file: IO[bytes], url: str, compression: str, start: int, stop: int, content: bytes = b"") -> Part:
    """The members that begin in bytes start ... stop - 1; those alone count whose content begins as `content` says."""
    size = file.seek(0, io.SEEK_END)
    first = 0 if start == 0 else _next_head(file, compression, start, stop, content)
    if first is None:
        return Part(iter(()), iter(()))
    end = size if stop >= size else _next_head(file, compression, stop, size, content) or size
    return Part(
        read_blocks(_range_of(file, first, end), url, compression),
        read_blocks(_range_of(file, end, size), url, compression) if end < size else iter(()),
    )


def _next_head(file: IO[bytes], compression: str, start: int, stop: int, content: bytes) -> int | None:
    """Where the first member begins between two bytes, None where none does."""
    position = start
    while position < stop:
        file.seek(position)
        block = file.read(SEARCHED_BYTES + HEAD_BYTES - 1)
        for found in HEADS[compression].finditer(block):
            at = position + found.start()
            if at < stop and _is_member(file, compression, at, content):
                return at
        position += SEARCHED_BYTES
    return None


def _is_member(file: IO[bytes], compression: str, at: int, content: bytes) -> bool:
    end = _gzip_end(file, at, None, content) if compression == "gzip" else _zstd_end(file, at, None)
    if end is None:
        return False
    file.seek(end)
    return not file.read(1) or _begins(file, end, compression)


def _begins(file: IO[bytes], at: int, compression: str) -> bool:
    file.seek(at)
    return HEADS[compression].match(file.read(HEAD_BYTES)) is not None


def _gzip_end(file: IO[bytes], start: int, limit: int | None, content: bytes = b"") -> int | None:
    """Where a gzip member ends, None when it cannot be read, is longer than `limit` or does not begin as it should."""
    member = zlib.decompressobj(wbits=31)
    file.seek(start)
    read, head = 0, b""
    while not member.eof:
        data = file.read(SEARCHED_BYTES)
        read += len(data)
        if not data or (limit is not None and read > limit):
            return None
        while data and not member.eof:
            try:
                block = member.decompress(data, SEARCHED_BYTES)
            except zlib.error:
                return None
            head = head if len(head) >= len(content) else head + block[: len(content)]
            if not content.startswith(head[: len(content)]):
                return None
            data = member.unconsumed_tail
    return start + read - len(member.unused_data) if head[: len(content)] == content else None


def _zstd_end(file: IO[bytes], start: int, limit: int | None) -> int | None:
    """Where a zstd frame ends, by the heads of its blocks; None when there is none or it is longer than `limit`."""
    file.seek(start)
    head = file.read(8)
    if len(head) < 8:
        return None
    if head[:4] != b"\x28\xb5\x2f\xfd":
        return start + 8 + int.from_bytes(head[4:], "little")
    described = head[4]
    if described & 0x08:
        return None
    single, checksum = described >> 5 & 1, described >> 2 & 1
    content_bytes = (single, 2, 4, 8)[described >> 6]
    position = start + 5 + (1 - single) + (0, 1, 2, 4)[described & 3] + content_bytes
    last = 0
    while not last:
        file.seek(position)
        block = int.from_bytes(file.read(3), "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        too_long = limit is not None and position - start > limit
        if kind == 3 or size > MAX_BLOCK or too_long or not file.read(1):
            return None
        position += 3 + (1 if kind == 1 else size)
    return position + 4 * checksum


def _range_of(file: IO[bytes], start: int, stop: int) -> IO[bytes]:
    return cast(IO[bytes], _Range(file, start, stop))


class _Range(io.RawIOBase):
    """Bytes start ... stop - 1 of a file, which is read from nowhere else meanwhile."""

    def __init__(self, file: IO[bytes], start: int, stop: int):
        super().__init__()
        self._file, self._position, self._stop = file, start, stop

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_SET
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        left = self._stop - self._position
        self._file.seek(self._position)
        found = self._file.read(left if size < 0 else min(size, left))
        self._position += len(found)
        return found

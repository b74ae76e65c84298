"""Blocks of what is in a file, decompressed where it is compressed."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from common.mistakes import Mistake

BLOCK_BYTES = 8 << 20
"""Bytes read at a time, after decompression."""
MAX_WINDOW = 1 << 27
"""Bytes of zstd's window that its library reads unless told otherwise."""


def read_blocks(file: IO[bytes], url: str, compression: str | None) -> Iterator[bytes]:
    """The rest of a file, decompressed, in blocks of at most BLOCK_BYTES.

    Raises ValueError naming the file when its compressed stream is truncated or damaged.
    """
    if compression is None:
        while block := file.read(BLOCK_BYTES):
            yield block
        return
    window = _zstd_window(file) if compression == "zstd" else 0
    if window > MAX_WINDOW:
        raise Mistake(
            f"{url}: its zstd window is {window >> 20} MiB and {MAX_WINDOW >> 20} can be read; "
            "recompress it with --long=27 or without"
        )
    stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
    while block := _decompress(stream, url, compression):
        yield block


def read_all(file: IO[bytes], url: str, compression: str | None, most: int) -> bytes | None:
    """The rest of a file, decompressed; None where that is more than `most` bytes."""
    blocks: list[bytes] = []
    size = 0
    for block in read_blocks(file, url, compression):
        size += len(block)
        if size > most:
            return None
        blocks.append(block)
    return b"".join(blocks)


def _zstd_window(file: IO[bytes]) -> int:
    """Bytes that the first frame of a zstd stream says its reader must keep (RFC 8878, section 3.1.1.1); 0 if none."""
    start = file.tell()
    head = file.read(6)
    file.seek(start)
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd" or head[4] & 0x20:
        return 0
    base = 1 << (10 + (head[5] >> 3))
    return base + base // 8 * (head[5] & 7)


def _decompress(stream: pa.CompressedInputStream, url: str, compression: str) -> bytes:
    try:
        return stream.read(BLOCK_BYTES)
    except OSError as error:
        # what the decompressor finds has no number, unlike an error of the file system
        if error.errno is not None:
            raise
        raise Mistake(
            f"{url}: the {compression} stream is truncated or damaged ({str(error).splitlines()[0]}); "
            "fetch the file again or take it out of the sources"
        ) from None

"""Arrow's stream and file formats, as Hugging Face `datasets` writes them: cut by record batches.

A file is a stream between a head and a footer, so that both are read alike:

    [ARROW1]  schema  [dictionaries]  batch  batch ...  end  [footer]

Where a batch ends is known from its head, so a plan hops from one to the next without reading what is in them. A
file with dictionaries is left whole, since they belong to all that comes after them.
"""

import dataclasses
import io
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import pyarrow as pa

from common.mistakes import Mistake
from data_pipeline.building.formats.columns import check_column, column_bytes, column_records
from data_pipeline.building.records import Record, Rejects, Unit

MAGIC, OLD_MAGIC = b"ARROW1", b"FEA1"
HEAD_BYTES = 4096
"""Read at once of a message: more than its metadata takes unless there are hundreds of columns."""
CONTINUATION = 0xFFFFFFFF
SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Kinds of messages (format/Message.fbs)."""


class Message(NamedTuple):
    """Where a message of a stream lies."""

    kind: int
    """What it holds, as Message.fbs numbers it."""
    start: int
    """Its first byte."""
    stop: int
    """The byte after its last."""


def plan_arrow(file: IO[bytes], whole: Unit, text_key: str, unit_bytes: int) -> list[Unit]:
    """Neighbouring record batches with about unit_bytes in them."""
    schema, *batches = _messages(file, whole.url)
    if any(message.kind == DICTIONARY for message in batches) or not batches:
        return [whole]
    check_column(_schema(file, whole.url, schema), whole.url, text_key)
    units: list[Unit] = []
    start = batches[0].start
    for batch in batches:
        if batch.stop - start >= unit_bytes or batch is batches[-1]:
            units.append(dataclasses.replace(whole, weight=batch.stop - start, start=start, stop=batch.stop))
            start = batch.stop
    return units


def read_arrow(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    """Records of the batches of a unit. ValueError when the file cannot be read or has no such column."""
    schema = next(_messages(file, unit.url))
    check_column(_schema(file, unit.url, schema), unit.url, text_key)
    file.seek(schema.start)
    head = file.read(schema.stop - schema.start)
    file.seek(max(unit.start, schema.stop))
    left = None if unit.stop is None else unit.stop - max(unit.start, schema.stop)
    part = pa.PythonFile(_Joined(head, file, left), "r")
    yield from column_records((column_bytes(batch, text_key) for batch in _batches(part, unit.url)), rejects)


def _batches(part: pa.PythonFile, url: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from pa.ipc.open_stream(part)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(url, error) from None


def _schema(file: IO[bytes], url: str, message: Message) -> pa.Schema:
    file.seek(message.start)
    try:
        return pa.ipc.read_schema(pa.py_buffer(file.read(message.stop - message.start)))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(url, error) from None


def _messages(file: IO[bytes], url: str) -> Iterator[Message]:
    """The messages of a file, the first of which is its schema."""
    size = file.seek(0, io.SEEK_END)
    position = _first_message(file, url, size)
    expected: tuple[int, ...] = (SCHEMA,)
    while position < size:
        file.seek(position)
        head = file.read(HEAD_BYTES)
        try:
            metadata, head_bytes = _metadata(file, head)
            if not metadata:
                break
            kind, body_bytes = _kind_and_body(metadata)
        except (struct.error, IndexError):
            raise _damaged(url, f"no message at byte {position}") from None
        stop = position + head_bytes + len(metadata) + body_bytes
        if stop > size or body_bytes < 0 or kind not in expected:
            raise _damaged(url, f"it breaks off or is damaged at byte {position}")
        yield Message(kind, position, stop)
        position, expected = stop, (DICTIONARY, BATCH)
    if expected == (SCHEMA,):
        raise _damaged(url, "it is empty")


def _first_message(file: IO[bytes], url: str, size: int) -> int:
    file.seek(0)
    head = file.read(8)
    if head.startswith(OLD_MAGIC):
        raise Mistake(f"{url}: is of Feather's first version; write it again as parquet")
    if not head.startswith(MAGIC):
        return 0
    file.seek(max(size - len(MAGIC), 0))
    if file.read(len(MAGIC)) != MAGIC:
        raise _damaged(url, "it breaks off before its footer")
    return 8


def _metadata(file: IO[bytes], head: bytes) -> tuple[bytes, int]:
    """Description of a message that starts with `head`, empty at the end of a stream, and how far in it begins."""
    (length,) = struct.unpack_from("<I", head)
    head_bytes = 4
    if length == CONTINUATION:  # what streams before version 0.15 of Arrow lack
        (length,) = struct.unpack_from("<I", head, 4)
        head_bytes = 8
    found = head[head_bytes : head_bytes + length]
    if len(found) < length:
        found += file.read(length - len(found))
    if len(found) < length:
        raise IndexError
    return found, head_bytes


def _kind_and_body(metadata: bytes) -> tuple[int, int]:
    """Kind of a message and bytes of its body, out of the flatbuffer that describes it."""
    (table,) = struct.unpack_from("<I", metadata)
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    (fields_bytes,) = struct.unpack_from("<H", metadata, fields)
    kind_at, body_at = (
        struct.unpack_from("<H", metadata, fields + at)[0] if at + 2 <= fields_bytes else 0 for at in (6, 10)
    )
    kind = metadata[table + kind_at] if kind_at else 0
    body_bytes = struct.unpack_from("<q", metadata, table + body_at)[0] if body_at else 0
    return kind, body_bytes


class _Joined(io.RawIOBase):
    """A schema and then a part of the file it is of, as one stream."""

    def __init__(self, head: bytes, file: IO[bytes], left: int | None):
        super().__init__()
        self._head, self._file, self._left = head, file, left

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            size = len(self._head) if size < 0 else size
            found, self._head = self._head[:size], self._head[size:]
            return found
        if self._left is not None:
            size = self._left if size < 0 else min(size, self._left)
        found = self._file.read(size)
        if self._left is not None:
            self._left -= len(found)
        return found


def _damaged(url: str, error: Exception | str) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return Mistake(
        f"{url}: not a readable arrow file ({str(error).splitlines()[0]}); "
        "fetch it again or correct the format of its source"
    )

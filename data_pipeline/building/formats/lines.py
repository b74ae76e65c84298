"""Text files: the whole file is a document, or each line is, or a field of each line of JSON.

    blocks of bytes -> lines, ended by a line feed and nothing else -> records

A line belongs to the part of a file that it starts in.
"""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from data_pipeline.building.compressed import read_all, read_blocks
from data_pipeline.building.members import Part, part_of
from data_pipeline.building.records import MAX_DOCUMENT_BYTES, Record, Rejects, Unit, decode


def read_whole(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    """The file as one document."""
    content = read_all(file, unit.url, unit.compression, MAX_DOCUMENT_BYTES)
    if content is None:
        rejects.add("too_large", 1)
    else:
        yield from decode(1, content.removeprefix(codecs.BOM_UTF8), rejects)


def read_text_lines(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    """Every line as a document."""
    for number, line in enumerate(read_lines(file, unit), start=1):
        if line is None:
            rejects.add("too_large", number)
        else:
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 and unit.start == 0 else line
            yield from decode(number, line.removesuffix(b"\r"), rejects)


def read_json_lines(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    """A field of every line."""
    # control characters within a string, NUL among them, are against the letter of JSON and common in corpora
    parse = json.JSONDecoder(strict=False).decode
    for number, line in enumerate(read_lines(file, unit), start=1):
        if line is None:
            rejects.add("too_large", number)
            continue
        try:
            record = parse(line.removeprefix(codecs.BOM_UTF8).decode())
            text = record[text_key] if text_key in record else _nested(record, text_key)
        except UnicodeDecodeError:
            rejects.add("invalid_utf8", number)
        except KeyError:
            rejects.add("missing_text", number)
        except (ValueError, TypeError, RecursionError):
            if line.strip():
                rejects.add("malformed_json", number)
        else:
            if text and isinstance(text, str):
                yield number, text
            else:
                rejects.add("empty" if text == "" else "missing_text", number)


def _nested(record: Any, text_key: str) -> Any:
    """Value of a field within fields, such as `meta.text`. KeyError when there is none."""
    if not isinstance(record, dict):
        raise TypeError
    for key in text_key.split("."):
        if not isinstance(record, dict):
            raise KeyError(text_key)
        record = record[key]
    return record


def read_lines(file: IO[bytes], unit: Unit) -> Iterator[bytes | None]:
    """Lines that start in the unit, ended by a line feed and nothing else; None stands for one that is too large."""
    if unit.compression and unit.stop is None:
        return split_lines(read_blocks(file, unit.url, unit.compression))
    if unit.compression:
        assert unit.stop is not None
        part = part_of(file, unit.url, unit.compression, unit.start, unit.stop)
        return split_lines(_line_blocks(part, unit.start == 0))
    start = _line_border(file, unit.start)
    stop = None if unit.stop is None else _line_border(file, unit.stop)
    file.seek(start)
    return split_lines(_limit(read_blocks(file, unit.url, None), None if stop is None else stop - start))


def _line_blocks(part: Part, is_first: bool) -> Iterator[bytes]:
    """Blocks of the lines that a part of a compressed file holds.

    Members need not end where lines do: a part begins after its first line feed and goes on to the next one beyond.
    """
    begun = is_first
    for block in part.inside:
        if not begun:
            found = block.find(b"\n")
            begun = found >= 0
            block = block[found + 1 :] if begun else b""
        yield block
    for block in part.beyond if begun else ():
        found = block.find(b"\n")
        yield block if found < 0 else block[: found + 1]
        if found >= 0:
            return


def _line_border(file: IO[bytes], offset: int) -> int:
    """Where the first line begins at or after the offset."""
    if offset == 0:
        return 0
    position = offset - 1
    file.seek(position)
    while block := file.read(1 << 16):
        found = block.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(block)
    return position


def _limit(blocks: Iterator[bytes], left: int | None) -> Iterator[bytes]:
    for block in blocks:
        if left is None:
            yield block
            continue
        if left <= 0:
            return
        yield block[:left]
        left -= len(block)


def split_lines(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
    """Lines of bytes that come in blocks of any size; None stands for one that is too large."""
    pending: list[bytes] = []
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        size += len(first)
        if size <= MAX_DOCUMENT_BYTES:
            pending.append(first)
        if not others:
            continue
        yield b"".join(pending) if size <= MAX_DOCUMENT_BYTES else None
        yield from others[:-1]
        pending, size = [others[-1]], len(others[-1])
    if size:
        yield b"".join(pending) if size <= MAX_DOCUMENT_BYTES else None

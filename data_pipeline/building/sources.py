"""Reads documents out of files, as a plan that any number of workers can share.

    files -> plan_units -> units      a file, or a part of a big one that can be read by itself
          -> group_tasks -> tasks     neighbouring units that make one shard together
    unit -> read_documents -> (number of the record in the unit, text)

Big uncompressed jsonl and line files are cut into byte ranges at line borders, parquet by row groups; compressed
files are streamed. The plan depends on the files alone. Bad records never stop a build: they are counted by reason.
"""

import codecs
import csv
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from data_pipeline.building.parquet_files import column_values, no_column, open_parquet, text_bytes
from data_pipeline.building.source_files import SourceFile, open_file, read_blocks
from data_pipeline.config import SourceConfig

MAX_DOCUMENT_BYTES = 1 << 28
"""Records longer than this are dropped and counted as too_large: memory has to end somewhere."""
MAX_EXAMPLES = 3
"""Bad records of each reason that a task remembers."""
SAMPLE_CHARACTERS = 300
"""How much of the text of each it keeps."""
FILES_AT_ONCE = 16
"""Files whose footers are read side by side: that is waiting, not work."""
SPOILED_LINE = 'x"y\rz\n'
"""No part of a row, whether quotes are open or not: it stands for a line that is too large."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
EXPANSION = {"gzip": 4, "zstd": 4, "parquet": 2}
"""Guess of how many bytes of text one stored byte holds; it only balances the sizes of tasks."""

Record = tuple[int, str]
"""Number of the record in its unit, from 1, and its text."""


@dataclasses.dataclass(frozen=True)
class Unit:
    """A file or a part of one."""

    source: int
    """Number of the source in the config."""
    url: str
    """Where the file lies."""
    format: str
    """jsonl, parquet, csv, tsv or text."""
    compression: str | None
    """gzip, zstd or None."""
    weight: int
    """About how many bytes of text are in it."""
    start: int = 0
    """First byte, or first row group; a record belongs to the unit it starts in."""
    stop: int | None = None
    """Byte or row group after the last; None reads to the end."""


class Rejects:
    """Records that were dropped: how many for which reason, and where the first ones are."""

    def __init__(self):
        self.counts: Counter[tuple[int, str]] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.samples: list[dict[str, Any]] = []
        """The first texts dropped, of each source for each reason: their beginnings and where they lie."""
        self.changes: Counter[str] = Counter()
        """What was replaced in records that were not dropped, and how often."""
        self.unit: Unit | None = None

    def add(self, reason: str, record: int, text: str | None = None) -> None:
        """Counts one record of the unit being read, by the number of its source and the reason."""
        assert self.unit is not None
        self.counts[self.unit.source, reason] += 1
        if text is not None and self.counts[self.unit.source, reason] <= MAX_EXAMPLES:
            beginning = text[:SAMPLE_CHARACTERS].encode(errors="replace").decode()
            where = {"reason": reason, "source": self.unit.source, "where": self.place(record)}
            self.samples.append({**where, "text": beginning, "characters": len(text)})
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(self.place(record))

    def place(self, record: int) -> str:
        """Where a record of the unit being read lies."""
        assert self.unit is not None
        after = f" after {_part_name(self.unit)}" if self.unit.start else ""
        return f"{self.unit.url} record {record}{after}"

    def by_reason(self) -> dict[str, int]:
        """Counts of all sources."""
        result: Counter[str] = Counter()
        for (_, reason), count in self.counts.items():
            result[reason] += count
        return dict(sorted(result.items()))


def _part_name(unit: Unit) -> str:
    return f"row group {unit.start}" if unit.format == "parquet" else f"byte {unit.start}"


# ---- the plan


def plan_units(files: Sequence[SourceFile], sources: Sequence[SourceConfig], unit_bytes: int) -> list[Unit]:
    """Cuts files into units of about unit_bytes of text where that is possible, in the order of the files.

    Raises ValueError when a big parquet file is none.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        plans = pool.map(lambda file: _plan_file(file, sources[file.source], unit_bytes), files)
        return [unit for plan in plans for unit in plan]


def _plan_file(file: SourceFile, source: SourceConfig, unit_bytes: int) -> list[Unit]:
    weight = file.size * EXPANSION.get(file.compression or file.format, 1)
    whole = Unit(file.source, file.url, file.format, file.compression, weight)
    is_one = file.format in DELIMITERS or (file.format == "text" and source.document == "file")
    if weight <= unit_bytes or file.compression or is_one:
        return [whole]
    if file.format == "parquet":
        return _plan_parquet(whole, source, unit_bytes)
    num_parts = -(-file.size // unit_bytes)
    borders = [file.size * part // num_parts for part in range(num_parts + 1)]
    return [
        dataclasses.replace(whole, weight=stop - start, start=start, stop=stop)
        for start, stop in itertools.pairwise(borders)
    ]


def _plan_parquet(whole: Unit, source: SourceConfig, unit_bytes: int) -> list[Unit]:
    with open_file(whole.url) as file:
        sizes = text_bytes(open_parquet(file, whole.url, source.text_key), source.text_key)
    units: list[Unit] = []
    start = size = 0
    for group, bytes_here in enumerate(sizes):
        size += bytes_here
        if size >= unit_bytes or group == len(sizes) - 1:
            units.append(dataclasses.replace(whole, weight=size, start=start, stop=group + 1))
            start, size = group + 1, 0
    return units


def group_tasks(units: Sequence[Unit], task_bytes: int) -> list[list[Unit]]:
    """Fills tasks with neighbouring units until the next one would make them larger than task_bytes."""
    tasks: list[list[Unit]] = []
    size = 0
    for unit in units:
        if not tasks or size + unit.weight > task_bytes:
            tasks.append([])
            size = 0
        tasks[-1].append(unit)
        size += unit.weight
    return tasks


# ---- reading


def read_documents(unit: Unit, source: SourceConfig, rejects: Rejects) -> Iterator[Record]:
    """Texts of a unit in the order of its records, memory bounded by a block and the longest record.

    Raises ValueError when the file as a whole cannot be read (truncated, no parquet, no such column).
    """
    rejects.unit = unit
    with open_file(unit.url) as file:
        if unit.format == "parquet":
            yield from _read_parquet(file, unit, source, rejects)
        elif unit.format == "jsonl":
            yield from _read_json_lines(file, unit, source.text_key, rejects)
        elif unit.format in DELIMITERS:
            yield from _read_table(file, unit, source.text_key, rejects)
        elif source.document == "line":
            yield from _read_text_lines(file, unit, rejects)
        else:
            yield from _read_whole(file, unit, rejects)


def _read_whole(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    blocks: list[bytes] = []
    size = 0
    for block in read_blocks(file, unit.url, unit.compression):
        size += len(block)
        if size > MAX_DOCUMENT_BYTES:
            rejects.add("too_large", 1)
            return
        blocks.append(block)
    yield from _decode(1, b"".join(blocks).removeprefix(codecs.BOM_UTF8), rejects)


def _read_text_lines(file: IO[bytes], unit: Unit, rejects: Rejects) -> Iterator[Record]:
    for number, line in enumerate(_read_lines(file, unit), start=1):
        if line is None:
            rejects.add("too_large", number)
        else:
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 and unit.start == 0 else line
            yield from _decode(number, line.removesuffix(b"\r"), rejects)


def _decode(number: int, raw: bytes, rejects: Rejects) -> Iterator[Record]:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        rejects.add("invalid_utf8", number)
        return
    if text:
        yield number, text
    else:
        rejects.add("empty", number)


def _read_json_lines(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    # control characters within a string, NUL among them, are against the letter of JSON and common in corpora
    parse = json.JSONDecoder(strict=False).decode
    for number, line in enumerate(_read_lines(file, unit), start=1):
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


def _read_lines(file: IO[bytes], unit: Unit) -> Iterator[bytes | None]:
    """Lines that start in the unit, ended by a line feed and nothing else; None stands for one that is too large."""
    if unit.compression:
        return _split_lines(read_blocks(file, unit.url, unit.compression))
    start = _line_border(file, unit.start)
    stop = None if unit.stop is None else _line_border(file, unit.stop)
    file.seek(start)
    return _split_lines(_limit(read_blocks(file, unit.url, None), None if stop is None else stop - start))


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


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes | None]:
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


# ---- columns


def _read_parquet(file: IO[bytes], unit: Unit, source: SourceConfig, rejects: Rejects) -> Iterator[Record]:
    parquet = open_parquet(file, unit.url, source.text_key)
    stop = parquet.num_row_groups if unit.stop is None else unit.stop
    number = 0
    for group in range(unit.start, stop):
        for values in column_values(parquet, unit.url, group, source.text_key):
            for raw in values:
                number += 1
                if raw is None:
                    rejects.add("missing_text", number)
                elif len(raw) > MAX_DOCUMENT_BYTES:
                    rejects.add("too_large", number)
                else:
                    yield from _decode(number, raw, rejects)


def _read_table(file: IO[bytes], unit: Unit, text_key: str, rejects: Rejects) -> Iterator[Record]:
    """A column of rows separated by commas or tabs (RFC 4180), the first of which names the columns.

    A row that does not have as many fields as that, or quotes that do not close, is counted and left out.
    """
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    rows = csv.reader(_table_lines(file, unit), delimiter=DELIMITERS[unit.format], strict=True)
    names: list[str] = []
    for number in itertools.count(0):
        try:
            row = next(rows, None)
        except csv.Error as error:
            rejects.add("too_large" if "limit" in str(error) else f"malformed_{unit.format}", number)
            continue
        if row is None:
            return
        if not names:
            names = row
            if text_key not in names:
                raise no_column(unit.url, text_key, [name.encode(errors="replace").decode() for name in names])
        elif row:
            if len(row) != len(names):
                rejects.add(f"malformed_{unit.format}", number)
            else:
                yield from _decode(number, row[names.index(text_key)].encode(errors="surrogateescape"), rejects)


def _table_lines(file: IO[bytes], unit: Unit) -> Iterator[str]:
    """Lines with their line feeds; a byte that is no UTF-8 is kept as a surrogate."""
    for number, line in enumerate(_read_lines(file, unit)):
        if line is None:
            yield SPOILED_LINE
            continue
        line = line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
        yield line.decode(errors="surrogateescape") + "\n"
